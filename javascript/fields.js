/* One field of the form: label, help, changed mark, pending suggestion, problem. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const fields = new Set();
  /** Repaints every field that is on the page. */
  LT.paintFields = () => {
    for (const field of [...fields]) {
      if (field.element.isConnected) field.update();
      else fields.delete(field);
    }
  };
  LT.startFields = () => ["form", "plan", "suggestions", "pictures", "status"].forEach((name) => LT.on(name, LT.paintFields));

  /** The frame of a field around its control; `pending()` gives the text of an open suggestion, `wrong()` a problem. */
  LT.fieldFrame = ({ id, label, help, control, hint, differs, pending, wrong, toml, update, shown }) => {
    const dot = h("span.lt-differs", { title: t("differs from the default") });
    const chip = h("span.lt-pending");
    const below = h("div.lt-hint");
    const problem = h("div.lt-below");
    const element = h("div.lt-field", { "data-path": id },
      h("div.lt-label", {},
        h("label", { for: `lora_trainer_f_${id}` }, label),
        help && LT.help(help, label),
        dot,
        toml && h("code.lt-toml", {}, toml),
      ),
      h("div.lt-control", {}, control, chip),
      below,
      problem,
    );
    const field = {
      element,
      update() {
        if (update) update();
        dot.hidden = !(differs && differs());
        const offered = pending ? pending() : null;
        chip.hidden = offered === null || offered === undefined;
        if (!chip.hidden) LT.fill(chip, LT.icon("next"), offered);
        element.classList.toggle("lt-offered", !chip.hidden);
        const words = typeof hint === "function" ? hint() : hint;
        LT.fill(below, words);
        below.hidden = !below.textContent;
        const fieldProblem = wrong ? wrong() : null;
        element.classList.toggle("lt-wrong", Boolean(fieldProblem));
        LT.fill(problem, fieldProblem && LT.problem(fieldProblem));
        element.hidden = Boolean(shown && !shown() && !fieldProblem);
      },
    };
    fields.add(field);
    element.update = field.update;
    field.update();
    return element;
  };

  const range = (option) => {
    const parts = [];
    if (option.default !== "" && option.default !== null && !(Array.isArray(option.default) && !option.default.length)) {
      parts.push(
        t("default {value}", {
          value:
            option.type === "choice"
              ? LT.choiceLabel(option.path, option.default)
              : option.type === "bool"
                ? option.default
                  ? t("on")
                  : t("off")
                : LT.shown(option, option.default),
        }),
      );
    }
    if (option.low !== null && option.low !== undefined && option.high !== null && option.high !== undefined) {
      parts.push(t("{low} to {high}", { low: option.low, high: option.high }));
    } else if (option.low !== null && option.low !== undefined) parts.push(t("from {low}", { low: option.low }));
    else if (option.above !== null && option.above !== undefined) parts.push(t("above {low}", { low: option.above }));
    return parts.join(" · ");
  };

  const pendingOf = (option) => {
    const change = LT.pendingChange(option.path);
    return change ? LT.shown(option, change.value).replace(/\n/g, " / ") : null;
  };

  const CONTROLS = {
    bool: (option, id, write) => {
      const box = h("input", { type: "checkbox", id, onchange: () => { paint(box.checked); write(box.checked); } });
      const words = h("span");
      const paint = (value) => { box.checked = value === true; words.textContent = value === true ? t("on") : t("off"); };
      return { element: h("label.lt-switch", {}, box, words), paint };
    },
    choice: (option, id, write) => select(id, choicesOf(option), write),
    checkpoint: (option, id, write) =>
      orWritten(id, choicesOf(option), write, {
        label: t("another file, folder or Hub model…"),
        name: t("Path, or owner/name of a Hub's model"),
        placeholder: "owner/name",
        empty: loadedLabel,
      }),
    vae: (option, id, write) =>
      orWritten(id, choicesOf(option), write, {
        label: t("another file, folder or Hub model…"),
        name: t("Path, or owner/name of a Hub's model"),
        placeholder: "owner/name",
        empty: () => t("the checkpoint's own"),
      }),
    /** A listed choice, or a class of any installed package by its dotted name. */
    class: (option, id, write) =>
      orWritten(id, choicesOf(option), write, {
        label: t("another class…"),
        name: t("Whole name of the class"),
        placeholder: "package.Class",
      }),
    /** A secret: not shown on the screen, not stored by the browser. */
    secret: (option, id, write) => {
      const field = h("input.lt-input", {
        id,
        type: "password",
        spellcheck: "false",
        autocomplete: "new-password",
        onchange: () => write(field.value.trim() || undefined),
      });
      return {
        element: field,
        paint: (value) => {
          if (field !== document.activeElement) field.value = value || "";
        },
      };
    },
    lines: (option, id, write) => {
      const area = h("textarea.lt-input", {
        id,
        rows: 1,
        spellcheck: "false",
        onchange: () => write(LT.read(option, area.value)),
        oninput: () => grow(area),
      });
      return {
        element: area,
        paint: (value) => {
          if (area !== document.activeElement) area.value = LT.shown(option, value);
          grow(area);
        },
      };
    },
    folder: (option, id, write) => {
      const field = CONTROLS.text(option, id, write);
      const browse = h(
        "button.lt-button.lt-browse",
        {
          "aria-label": t("Choose a folder"),
          title: t("Choose a folder"),
          onclick: () => LT.pickFolder(LT.value(option.path)).then((path) => path && write(path)),
        },
        "…",
      );
      return { element: h("div.lt-withbutton", {}, field.element, browse), paint: field.paint };
    },
    text: (option, id, write) => {
      const plain = option.type === "str" ? undefined : "decimal";
      const field = h("input.lt-input", {
        id,
        type: "text",
        inputmode: plain,
        spellcheck: "false",
        autocomplete: "off",
        placeholder: placeholder(option),
        onchange: () => write(LT.read(option, field.value)),
      });
      field.addEventListener("keydown", (event) => event.key === "Enter" && field.dispatchEvent(new Event("change")));
      return {
        element: field,
        paint: (value) => {
          if (field !== document.activeElement) field.value = LT.shown(option, value);
          field.placeholder = placeholder(option);
        },
      };
    },
  };
  const grow = (area) => {
    area.style.height = "auto";
    if (area.scrollHeight) area.style.height = `${area.scrollHeight + 2}px`;
  };

  const loadedLabel = () => {
    const model = LT.cache.status && LT.cache.status.model;
    return model && model.title
      ? t("loaded: {title}", { title: String(model.title).replace(/\.(safetensors|ckpt)\b.*$/, "") })
      : t("the loaded one");
  };
  const placeholder = (option) => {
    if (option.path === "save.output_name") return LT.resultName();
    if (option.path === "optimizer.unet_lr" || option.path === "optimizer.text_encoder_lr") {
      return LT.shown(LT.options.get("optimizer.learning_rate"), LT.value("optimizer.learning_rate"));
    }
    return option.optional ? t("automatic") : "";
  };
  const choicesOf = (option) =>
    (option.choices || []).map((choice) =>
      typeof choice === "object"
        ? choice
        : { value: choice, label: LT.choiceLabel(option.path, choice), folded: isMissing(option, choice) },
    );
  const isMissing = (option, choice) => Boolean(((option.facts || {})[choice] || {}).missing);
  /** A choice as users write it. */
  LT.choiceLabel = (path, choice) => {
    const { labels = {}, facts = {} } = LT.options.get(path) || {};
    const words = labels[choice] || String(choice);
    return (facts[choice] || {}).missing ? t("{name} (not installed)", { name: words }) : words;
  };

  const OTHER = "\u2026"; // opens a field for another value
  const FOLD = "\u2026more";
  const select = (id, choices, choose, empty) => {
    let current = "";
    let unfolded = false; // the choices that this machine lacks stand behind one line until that is chosen
    const choosing = () => {
      if (list.value !== FOLD) return choose(list.value);
      unfolded = true;
      paint(current);
      list.focus();
      if (list.showPicker) window.setTimeout(() => list.isConnected && navigator.userActivation.isActive && list.showPicker());
    };
    const list = h("select.lt-input", { id, onchange: choosing });
    const offered = (value) => {
      const shown = choices.filter((choice) => unfolded || !choice.folded || choice.value === value);
      const left = choices.length - shown.length;
      if (!left) return shown;
      const end = shown.findIndex((choice) => choice.value === OTHER);
      shown.splice(end < 0 ? shown.length : end, 0, { value: FOLD, label: t("{n} more, not installed…", { n: left }) });
      return shown;
    };
    const paint = (value) => {
      current = value;
      const all = choices.some((choice) => choice.value === value)
        ? offered(value)
        : [{ value, label: value === "" && empty ? empty() : String(value) }, ...offered(value)];
      const key = JSON.stringify([all, value === "" && empty ? empty() : ""]);
      if (list.dataset.drawn !== key) {
        LT.fill(list, all.map((choice) => h("option", { value: choice.value }, choice.value === "" && empty ? empty() : choice.label)));
        list.dataset.drawn = key;
      }
      list.value = value;
    };
    return { element: h("div.lt-select", {}, list, LT.icon("down")), paint };
  };
  /** A list to choose from: {element, paint(value)}. */
  LT.select = select;

  /** A list whose last choice opens a text field for other values. */
  const orWritten = (id, choices, write, { label, name, placeholder, empty }) => {
    const isListed = (value) => choices.some((choice) => choice.value === value);
    const list = select(id, [...choices, { value: OTHER, label }], (value) => (value === OTHER ? open() : write(value)), empty);
    const field = h("input.lt-input.lt-written", {
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      placeholder,
      "aria-label": name,
      onchange: () => field.value.trim() && write(field.value.trim()),
    });
    const open = () => {
      field.hidden = false;
      field.focus();
    };
    const paint = (value) => {
      if (field === document.activeElement) return;
      list.paint(isListed(value) ? value : OTHER);
      field.hidden = isListed(value);
      field.value = isListed(value) ? "" : value;
    };
    return { element: h("div", {}, list.element, field), paint };
  };

  const kindOf = (option) => {
    if (option.kind in CONTROLS) return option.kind;
    if (option.type === "bool" || option.type === "choice") return option.type;
    return option.type === "list" ? "lines" : "text";
  };

  /** What the chosen model is, and how that was detected. */
  const modelWords = (option) => {
    const model = option.kind === "checkpoint" && LT.cache.plan && LT.cache.plan.model;
    return (
      model && [
        [...LT.modelFacts(model), LT.size(model.native_size, model.native_size)].join(" · "),
        model.because && h("span.lt-because", {}, `: ${model.because}`),
      ]
    );
  };

  /** Facts of the chosen optimizer: a learning rate to start with, what it does by itself, the package that is missing. */
  const chosenFacts = (option) => {
    const facts = (option.facts || {})[LT.value(option.path)];
    if (!facts) return "";
    const usual = facts.finds
      ? t("Finds the size of its steps by itself: learning rates are multiples of it, 1 is usual.")
      : t("A learning rate of about {rate} is usual.", { rate: LT.rate(facts.hint) });
    const set = () =>
      LT.set({ "optimizer.learning_rate": facts.hint, "optimizer.unet_lr": undefined, "optimizer.text_encoder_lr": undefined });
    const others = ["optimizer.learning_rate", "optimizer.unet_lr", "optimizer.text_encoder_lr"]
      .map(LT.value)
      .filter((rate) => rate !== null && rate !== 0);
    return [
      facts.missing &&
        h("span.lt-note", {}, t("Needs the package {package}: {command}", { package: facts.missing, command: facts.install }), " "),
      usual, facts.free && [" ", t("It averages the weights by itself: the constant schedule suits it.")],
      others.some((rate) => rate !== facts.hint) && LT.isChanged(option.path) && [" ", h("button.lt-link", { onclick: set }, t("Set it"))],
    ];
  };

  /** The control of an option: {element, paint(value)}; `write` gets what the user enters. */
  LT.control = (option, id, write) => CONTROLS[kindOf(option)](option, id, write);

  /** Why an option has no effect now: the value that another one would need. */
  const noEffect = (path) => {
    const need = LT.unmetCondition(path);
    if (!need) return "";
    const [other, values] = need;
    const words = values
      .map((value) => (typeof value === "boolean" ? (value ? t("on") : t("off")) : LT.choiceLabel(other, value)))
      .join(" / ");
    return values.length
      ? t("No effect unless {name} is {values}.", { name: LT.labelOf(other), values: words })
      : t("No effect while {name} is off.", { name: LT.labelOf(other) });
  };

  /** The field of an option as the server declares it. Hidden without effect, unless it was changed or matches a search (`found`). */
  LT.field = (path, { label, hint, full = false, found: isMatch = false } = {}) => {
    const option = LT.options.get(path);
    if (!option || option.kind === "hidden") return null;
    const control = LT.control(option, `lora_trainer_f_${path}`, (value) => LT.set({ [path]: value }));
    return LT.fieldFrame({
      id: path,
      label: label || option.label,
      help: option.help,
      toml: full && path.split(".").pop(),
      control: control.element,
      hint: full
        ? () => [
            noEffect(path) && h("span.lt-note", {}, noEffect(path), " "),
            range(option),
            modelWords(option),
            option.facts && chosenFacts(option) && [" · ", chosenFacts(option)],
            h("div", {}, LT.networkHint(path)),
          ]
        : hint || (() => LT.networkHint(path) || modelWords(option) || (LT.isChanged(path) && chosenFacts(option))),
      shown: () => isMatch || LT.relevant(path) || LT.isChanged(path) || LT.pendingChange(path) !== null,
      differs: () => LT.isChanged(path),
      pending: () => pendingOf(option),
      wrong: () => LT.problemOf(path),
      update: () => control.paint(LT.value(path)),
    });
  };
})();
