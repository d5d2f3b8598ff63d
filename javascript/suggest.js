/* Step 3, right side: what the Performance Wizard suggests. At the first visit with a folder it fills in what the user has not typed,
   listed and with one Undo; after that it changes no field by itself. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const AMOUNT = ["data.num_repeats", "steps.max_train_epochs"];
  const parts = {};
  let lines = null; // open suggestions: [{path, label, old, value, because, typed, ticked, changes}]
  let takeBack = null; // undoes the last list that was used
  let undoRefuses = false; // whether that was a list of suggestions
  let applied = null; // its lines, as long as they are shown
  let failedFor = ""; // the folder for which nothing could be suggested
  let notes = []; // what the wizard says besides
  let note = "";
  let busy = false;

  LT.buildSuggestions = (right) => {
    parts.card = h("div.lt-card.lt-suggest");
    LT.fill(right, h("div.lt-scroll", {}, parts.card, LT.buildPlan()), LT.buildStart());
    LT.on("form", () => { note = ""; paint(); });
    LT.on("pictures", () => lines || paint());
    ["show settings", "pictures", "status"].forEach((name) => LT.on(name, atFirstVisit));
    LT.on("subject", () => wereUsed() && LT.noteSuggestions(undefined)); // another subject wants others: they come with the next visit
    paint();
  };

  /* ---- what became of them, by folder ---- */

  const KEPT = 20;
  /** Remembers for this folder what became of the suggestions: "used", "refused", "kept" (other settings came in). */
  LT.noteSuggestions = (what) => {
    const { suggested } = LT.state;
    delete suggested[LT.source()];
    if (what && LT.source()) suggested[LT.source()] = what;
    Object.keys(suggested).slice(0, -KEPT).forEach((folder) => delete suggested[folder]);
    LT.saveState();
  };
  const wereUsed = () => LT.state.suggested[LT.source()] === "used";
  LT.suggestionsRefused = () => LT.state.suggested[LT.source()] === "refused";

  /** At the first visit with these pictures: what is suggested is filled in, except where the user typed something. */
  const atFirstVisit = async () => {
    const pictures = LT.cache.pictures;
    const folder = LT.source();
    if (busy || lines || LT.state.step !== "settings" || !LT.isVisible() || !folder || folder in LT.state.suggested) return;
    if (!pictures || !pictures.counts.used || LT.activeRun() || folder === failedFor) return;
    LT.noteSuggestions("used");
    const response = await ask();
    if (!response) failedFor = folder;
    if (!response || LT.source() !== folder) {
      LT.noteSuggestions(undefined);
      return noteLine();
    }
    const all = order(response.changes);
    const mine = all.length - all.filter((line) => line.ticked).length;
    lines = all.filter((line) => line.ticked);
    const count = lines.length;
    if (count) use();
    else lines = null;
    const words = LT.tn(count, "{n} suggested setting is filled in.", "{n} suggested settings are filled in.");
    note = [count > 0 && words, mine > 0 && LT.tn(mine, "{n} that you typed stays.", "{n} that you typed stay.")].filter(Boolean).join(" ");
    noteLine();
    return null;
  };

  /** The open suggestion for a field, or null. */
  LT.pendingChange = (path) => (lines || []).find((line) => line.path === path) || null;
  LT.suggestionsOpen = () => lines !== null;
  LT.isSuggesting = () => busy;
  const ticked = () => (lines || []).filter((line) => line.ticked);
  LT.tickedCount = () => ticked().length;
  /** "path" -> value of everything that is ticked. */
  LT.tickedChanges = () => Object.assign({}, ...ticked().map((line) => line.changes));

  const noteLine = () => {
    paint();
    LT.emit("suggestions");
  };

  /** Asks the wizard; null where it could not answer. */
  const ask = async () => {
    busy = true;
    note = t("Thinking…");
    paint();
    LT.emit("plan"); // a start waits
    try {
      const response = await LT.post("wizard", { config: LT.config(), subject: LT.state.subject, typed: Object.keys(LT.state.typed) });
      notes = response.notes || [];
      return response;
    } catch (error) {
      LT.showError(error);
      return null;
    } finally {
      busy = false;
      note = "";
    }
  };
  LT.suggest = async () => {
    if (busy) return;
    const response = await ask();
    lines = response && order(response.changes);
    if (lines && !lines.length) {
      lines = null;
      note = t("Nothing to change: the settings are as they should be.");
    }
    noteLine();
  };

  /** Repeats and epochs in one line; what the user typed comes last and unticked. */
  const order = (changes) => {
    const all = changes
      .filter((change) => !AMOUNT.includes(change.path))
      .map((change) => ({ ...change, changes: { [change.path]: change.value } }));
    const amounts = changes.filter((change) => AMOUNT.includes(change.path));
    if (amounts.length) {
      const amountValues = Object.assign({}, ...amounts.map((change) => ({ [change.path]: change.value })));
      const value = LT.epochs(amountValues) * LT.repeats(amountValues);
      const previous = LT.epochs() * LT.repeats();
      const typed = amounts.some((change) => LT.state.typed[change.path]);
      const because = [...new Set(amounts.map((change) => LT.messageText(change.because)))].join(" ");
      const how = t("{epochs} epochs × {repeats}", { epochs: LT.epochs(amountValues), repeats: LT.repeats(amountValues) });
      all.splice(0, 0, {
        path: "times",
        label: LT.labelOf("times"),
        value: value === previous ? how : value,
        old: previous,
        because,
        changes: amountValues,
        typed,
      });
    }
    const lines = all.map((line) => ({ ...line, typed: Boolean(line.typed || LT.state.typed[line.path]) }));
    return [...lines.filter((line) => !line.typed), ...lines.filter((line) => line.typed)].map((line) => ({
      ...line,
      ticked: !line.typed,
    }));
  };

  /** A share that is held back, in pictures. */
  const heldWords = (share) => {
    const { counts, validation } = LT.cache.pictures || { counts: { used: 0 } };
    const total = counts.used + ((validation || {}).count || 0);
    if (share <= 0) return t("none");
    return t("{n} of {total}", { n: LT.count(Math.max(1, Math.floor(share * total + 0.5))), total: LT.count(total) });
  };
  const valueWords = (line, value) => {
    if (line.path === "times") return typeof value === "number" ? LT.count(value) : value;
    if (line.path === "validate.fraction") return heldWords(value);
    const option = LT.options.get(line.path);
    if (!option) return String(value);
    if (value === null && /^optimizer\.(unet|text_encoder)_lr$/.test(line.path)) {
      return LT.shown(option, LT.value("optimizer.learning_rate"));
    }
    if (value === null || value === "" || value === undefined) return t("automatic");
    if (option.type === "bool") return value ? t("on") : t("off");
    return option.type === "choice" ? LT.choiceLabel(line.path, value) : LT.shown(option, value).replace(/\n/g, " / ");
  };

  const use = () => {
    const count = ticked().length;
    const changes = LT.tickedChanges();
    applied = ticked();
    lines = null;
    LT.noteSuggestions("used");
    undoRefuses = true;
    takeBack = LT.undoable(() => LT.set(changes, "wizard"));
    note = LT.tn(count, "{n} setting changed.", "{n} settings changed.");
    noteLine();
  };
  const undo = () => {
    const stayed = takeBack();
    takeBack = null;
    if (undoRefuses) LT.noteSuggestions("refused");
    applied = null;
    note = stayed
      ? LT.tn(stayed, "{n} setting that you changed since then stays.", "{n} settings that you changed since then stay.")
      : t("The settings are as before.");
    noteLine();
  };

  const paint = () => {
    const count = lines ? lines.length : 0;
    const on = ticked().length;
    const words = lines
      ? LT.tn(count, "{n} change, {ticked} ticked", "{n} changes, {ticked} ticked", { ticked: on })
      : note || t("Fills in what suits your pictures and this machine, each with its reason.");
    const all = h("input", {
      type: "checkbox",
      checked: lines && on === count,
      indeterminate: lines && on > 0 && on < count,
      onchange: () => {
        const set = on < count;
        lines.forEach((line) => (line.ticked = set));
        noteLine();
      },
    });
    LT.fill(
      parts.card,
      h("div.lt-suggesthead", {},
        LT.button(t("Suggest settings"), {
          kind: "accent",
          icon: "wand",
          disabled: busy || !LT.source(),
          title: LT.source() ? "" : t("Choose the folder of your pictures first."),
          onclick: LT.suggest,
        }),
        h("span.lt-muted.lt-grow", {}, words),
        lines && h("label.lt-inline", {}, all, t("all")),
        LT.button(t("Undo"), {
          icon: "undo",
          disabled: !takeBack,
          title: t("Takes back what the list changed; what you typed since then stays"),
          onclick: undo,
        })),
      lines ? list() : applied && appliedList(),
    );
  };

  /** What was filled in, with one button that takes it back. */
  const appliedList = () => {
    const line = (one) =>
      h("div.lt-change.lt-applied", {},
        LT.icon("check", "lt-good"),
        h("span.lt-changename", {}, one.label || LT.labelOf(one.path)),
        h("span.lt-values", {}, h("span", {}, valueWords(one, one.old)), LT.icon("next"), h("b", {}, valueWords(one, one.value))),
        h("span.lt-muted", {}, LT.messageText(one.because)),
      );
    const close = () => {
      applied = null;
      paint();
    };
    return [
      h("div.lt-changes", {}, applied.map(line)),
      notes.length > 0 && h("div.lt-wizardnotes", {}, notes.map((words) => h("div.lt-hint", {}, words))),
      h("div.lt-answers", {},
        LT.button(t("OK"), { kind: "primary", onclick: close }),
        LT.button(LT.tn(applied.length, "Undo this one", "Undo these {n}"), { icon: "undo", onclick: undo }),
      ),
    ];
  };

  const list = () => {
    const line = (one) => {
      const box = h("input", {
        type: "checkbox",
        checked: one.ticked,
        onchange: () => {
          one.ticked = box.checked;
          noteLine();
        },
      });
      const hidden =
        LT.options.get(one.path) && !LT.options.get(one.path).basic && one.path !== "times" && one.path !== "save.every_n_epochs";
      const because = [
        one.because && LT.messageText(one.because),
        one.typed && t("but you typed {value}", { value: valueWords(one, one.old) }),
        hidden && t("in “All”"),
      ].filter(Boolean);
      return h(`label.lt-change${one.typed ? ".lt-typed" : ""}`, {},
        box,
        h("span.lt-changename", {}, one.label || LT.labelOf(one.path)),
        h("span.lt-values", {}, h("span", {}, valueWords(one, one.old)), LT.icon("next"), h("b", {}, valueWords(one, one.value))),
        h("span.lt-muted", {}, because.join(" · ")),
      );
    };
    const typed = lines.filter((one) => one.typed);
    const count = ticked().length;
    return [
      h("div.lt-changes", {},
        lines.filter((one) => !one.typed).map(line),
        typed.length > 0 && typed.length < lines.length && h("i.lt-rule"),
        typed.map(line),
      ),
      notes.length > 0 &&
        h("div.lt-wizardnotes", {},
          notes.map((note) => h("div.lt-hint", {}, note)),
        ),
      h("div.lt-answers", {},
        LT.button(LT.tn(count, "Use this one", "Use these {n}"), { kind: "primary", disabled: !count, onclick: use }),
        LT.button(t("Keep mine"), {
          onclick: () => {
            lines = null;
            LT.noteSuggestions("refused");
            noteLine();
          },
        }),
      ),
    ];
  };

  LT.backToDefaults = () => {
    const kept = [
      /^data\.(train_data_dir|reg_data_dir|in_json|dataset_config|subsets|trigger_word|class_tokens|leave_out|crops)/,
      /^validate\.(data_dir|fraction)/,
      /^model\.pretrained/,
    ];
    const isKept = (path) => kept.some((pattern) => pattern.test(path));
    takeBack = LT.undoable(() => {
      LT.state.values = Object.fromEntries(Object.entries(LT.state.values).filter(([path]) => isKept(path)));
      LT.state.typed = {};
    });
    lines = applied = null;
    undoRefuses = false;
    LT.noteSuggestions("refused");
    LT.saveState();
    LT.emit("form", [...LT.options.keys()]);
    note = t("All settings are at their defaults; pictures and words are kept.");
    noteLine();
  };
})();
