/* Step 3, left side: the options, about twelve in the user's words or all that there are. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const parts = {};
  let search = "";
  let chinese = null;

  LT.buildSettings = (panel) => {
    parts.left = h("div.lt-left");
    parts.right = h("div.lt-right");
    LT.fill(panel, parts.left, parts.right);
    const field = h("input.lt-input", {
      type: "search",
      spellcheck: "false",
      placeholder: t("Search all settings"),
      "aria-label": t("Search all settings"),
      "data-search": true,
      oninput: () => find(field.value),
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !field.value) return;
      event.stopPropagation();
      field.value = "";
      find("");
    });
    parts.search = field;
    const both = [
      { value: "basic", label: t("Basic") },
      { value: "all", label: t("All") },
    ];
    parts.kind = LT.segments(
      both,
      LT.state.all ? "all" : "basic",
      (kind) => {
        LT.state.all = kind === "all";
        LT.saveState();
        paint();
      },
      { label: t("Which settings"), kind: "lt-equal" },
    );
    parts.form = h("div.lt-form.lt-scroll");
    parts.index = h("div.lt-index", { role: "navigation", "aria-label": t("Sections") });
    LT.fill(
      parts.left,
      h("div.lt-toolbar", {}, h("div.lt-searchbox", {}, LT.icon("search"), field, LT.key("/")), parts.kind),
      parts.index,
      parts.form,
      foot(),
    );
    LT.buildSuggestions(parts.right);
    paint();
  };

  const foot = () => {
    const exports = h("button.lt-button", { "aria-expanded": "false", onclick: () => LT.openExport(exports) },
      t("Export"),
      LT.icon("down"),
    );
    const defaults = h("button.lt-button.plain", { onclick: LT.backToDefaults }, t("Defaults"));
    return h("div.lt-formfoot", {},
      h("span.lt-differs.lt-always"),
      h("span.lt-muted", {}, t("differs from the default")),
      h("span.lt-gap"),
      defaults,
      LT.button(t("Import…"), { onclick: LT.openImport }),
      exports,
    );
  };

  const paint = () => {
    LT.fill(parts.form, search ? countMatches() : LT.state.all ? everything() : basic());
    LT.paintFields();
    paintIndex();
  };
  LT.on("options", () => parts.form && paint());
  LT.on("form", () => parts.form && paintIndex());

  /* ---- basic: in the user's words ---- */

  const basic = () => {
    const listed = new Set([
      "data.train_data_dir",
      "data.trigger_word",
      "data.class_tokens",
      "data.num_repeats",
      "steps.max_train_epochs",
      "save.every_n_epochs",
    ]);
    const wide = (span, field) => field && h("div", { style: { "--span": span } }, field);
    const addField = (path, span, more) => {
      listed.add(path);
      return wide(span, LT.field(path, more));
    };
    const groups = [
      [
        t("What to train"),
        [
          addField("model.pretrained_model_name_or_path", 4),
          addField("method", 2),
          addField("save.output_name", 2),
          addField("sample.prompts", 4),
        ],
      ],
      [t("How much"), [wide(2, timesField()), addField("data.resolution", 2, { hint: groupedInto }), addField("data.batch_size", 2)]],
      [
        t("How"),
        [
          addField("network.type", 6),
          addField("network.dim", 3),
          addField("network.alpha", 3),
          addField("optimizer.unet_lr", 3, { hint: LT.rateHint }),
          addField("optimizer.text_encoder_lr", 3),
          addField("optimizer.type", 3),
          wide(3, saveField()),
        ],
      ],
    ];
    const otherFields = [...LT.options.values()]
      .filter((option) => option.basic && !listed.has(option.path))
      .map((option) => addField(option.path, 3));
    groups[2][1].push(...otherFields);
    return groups.map(([title, fields]) => [h("div.lt-group", {}, title), h("div.lt-fields", {}, fields)]);
  };

  const groupedInto = () => {
    const buckets = LT.cache.pictures && LT.cache.pictures.buckets.length;
    return LT.value("data.enable_bucket") && buckets ? LT.tn(buckets, "all in one size", "grouped into {n} sizes") : "";
  };

  /** Repeats × epochs as one number; the folder's own repeats are kept. */
  const timesField = () => {
    const id = "lora_trainer_f_times";
    const write = () => {
      const times = Math.round(Number(field.value.replace(/[\s\u202f]/g, "")));
      if (!(times >= 1)) return LT.paintFields();
      const { repeats, epochs } = LT.split(times);
      LT.set({ ...(LT.folderRepeats() ? {} : { "data.num_repeats": repeats }), "steps.max_train_epochs": epochs });
      return null;
    };
    const field = h("input.lt-input", { id, type: "text", inputmode: "numeric", autocomplete: "off", onchange: write });
    field.addEventListener("keydown", (event) => event.key === "Enter" && write());
    return LT.fieldFrame({
      id: "times",
      label: t("Times each picture is seen"),
      help: t(
        "Repeats × epochs. 80 is usual for a character, 100 for a person, 40 for a style. A file is saved after each epoch.",
      ),
      control: field,
      hint: () =>
        LT.epochs()
          ? t("= {epochs} epochs × {repeats}", { epochs: LT.epochs(), repeats: LT.repeats() })
          : t("ends after {n} steps", { n: LT.count(LT.value("steps.max_train_steps")) }),
      differs: () => LT.isChanged("data.num_repeats") || LT.isChanged("steps.max_train_epochs"),
      pending: () => {
        const change = LT.pendingChange("times");
        return change ? String(change.value) : null;
      },
      wrong: () => LT.problemOf("data.num_repeats") || LT.problemOf("steps.max_train_epochs") || LT.problemOf("steps.max_train_steps"),
      update: () => document.activeElement !== field && (field.value = LT.epochs() ? LT.count(LT.epochs() * LT.repeats()) : ""),
    });
  };

  const saveField = () => {
    const other = () => LT.value("save.every_n_steps") > 0 && !LT.value("save.every_n_epochs");
    const choices = [
      { value: "1", label: t("after each epoch") },
      { value: "2", label: t("after every second epoch") },
      { value: "5", label: t("after every fifth epoch") },
      { value: "0", label: t("only at the end") },
    ];
    const list = LT.select("lora_trainer_f_save.every_n_epochs", choices, (value) =>
      LT.set({ "save.every_n_epochs": value === "1" ? undefined : Number(value), "save.every_n_steps": undefined }),
    );
    const paintList = () => {
      if (other()) list.paint(t("every {n} steps", { n: LT.count(LT.value("save.every_n_steps")) }));
      else list.paint(String(LT.value("save.every_n_epochs") === null ? 1 : LT.value("save.every_n_epochs")));
    };
    return LT.fieldFrame({
      id: "save.every_n_epochs",
      label: t("Save a file"),
      help: LT.options.get("save.every_n_epochs").help,
      control: list.element,
      differs: () => LT.isChanged("save.every_n_epochs") || LT.isChanged("save.every_n_steps"),
      pending: () => {
        const change = LT.pendingChange("save.every_n_epochs");
        return change ? LT.shown(LT.options.get("save.every_n_epochs"), change.value) : null;
      },
      wrong: () => LT.problemOf("save.every_n_epochs") || LT.problemOf("save.every_n_steps"),
      update: paintList,
    });
  };

  /* ---- all, and what a search finds ---- */

  /** Options in blocks under their headings, in the order of declaration: [[heading, options]]. */
  const blocks = (options) => {
    const groups = new Map();
    options
      .filter((option) => option.kind !== "hidden")
      .forEach((option) => groups.set(option.group, [...(groups.get(option.group) || []), option]));
    return [...groups];
  };
  const fieldsOf = (options, more) =>
    h("div.lt-fields.lt-two", {},
      options.map((option) => LT.field(option.path, { full: true, ...more })),
    );
  const section = (name, label, options, more) =>
    options.length > 0 &&
    h("div.lt-section", { "data-section": name }, h("div.lt-group", {}, label, h("code.lt-toml", {}, name && `[${name}]`)),
      blocks(options).map(([heading, some]) => h("div.lt-block", {}, heading && h("div.lt-blockname", {}, heading), fieldsOf(some, more))));
  const everything = () => LT.cache.options.sections.map((one) => section(one.name, one.label, one.options));

  /* ---- the sections in a row, to jump to ---- */

  const changed = (options) => options.filter((option) => option.kind !== "hidden" && LT.isChanged(option.path)).length;
  const paintIndex = () => {
    parts.index.hidden = Boolean(search) || !LT.state.all;
    if (parts.index.hidden) return;
    const jump = (name) => parts.form.querySelector(`[data-section="${CSS.escape(name)}"]`).scrollIntoView({ block: "start" });
    LT.fill(
      parts.index,
      LT.cache.options.sections
        .filter((one) => one.options.some((option) => option.kind !== "hidden"))
        .map((one) => {
          const count = changed(one.options);
          return h("button", { onclick: () => jump(one.name) },
            one.label,
            count > 0 && h("span.lt-differs", { title: t("differs from the default") }),
          );
        }),
    );
  };

  const find = async (text) => {
    search = text.trim().toLowerCase();
    if (/[\u4e00-\u9fff]/.test(search) && LT.language === "en" && !chinese) chinese = await LT.get("words?lang=zh_CN").catch(() => ({}));
    paint();
  };
  const english = () => {
    if (!LT.words) return {};
    english.kept = english.kept || Object.fromEntries(Object.entries(LT.words).map(([template, word]) => [word, template]));
    return english.kept;
  };
  /** By label in both languages, TOML name, sd-scripts name, help. */
  const matches = (option) => {
    const names = [option.label, option.path, option.kohya, english()[option.label], chinese && chinese[option.label]]
      .filter(Boolean)
      .join("\n")
      .toLowerCase();
    const words = search.split(/\s+/);
    return words.every(
      (word) =>
        names.includes(word) ||
        names.replace(/_/g, "").includes(word.replace(/_/g, "")) ||
        (word.length > 3 && String(option.help).toLowerCase().includes(word)),
    );
  };
  const countMatches = () => {
    const groups = LT.cache.options.sections
      .map((one) =>
        section(
          one.name,
          one.label,
          one.options.filter((option) => option.kind !== "hidden" && matches(option)),
          { found: true },
        ),
      )
      .filter(Boolean);
    return groups.length ? groups : h("div.lt-muted.lt-pad", {}, t("No setting is called “{words}”.", { words: search }));
  };

  /** Shows one option, wherever it is, and puts the cursor into it. */
  LT.showOption = (path) => {
    if (/^data\.(train_data_dir|trigger_word|class_tokens)$/.test(path) || path === "validate.data_dir") LT.goToStep("pictures");
    else LT.goToStep("settings");
    const panel = LT.panels[LT.state.step];
    const at = () => panel.querySelector(`[data-path="${CSS.escape(path)}"]`);
    if (!at() && LT.state.step === "settings") {
      search = parts.search.value = "";
      LT.state.all = true;
      parts.kind.pick("all");
      paint();
    }
    if (at() && at().hidden) find((parts.search.value = path)); // an option without effect now is shown where it is looked for
    const field = at() || panel.querySelector('[data-path="times"]');
    if (!field) return;
    field.scrollIntoView({ block: "center" });
    field.classList.add("lt-flash");
    window.setTimeout(() => field.classList.remove("lt-flash"), 1600);
    const control = field.querySelector("input, select, textarea");
    if (control) control.focus();
  };
})();
