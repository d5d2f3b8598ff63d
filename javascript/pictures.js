/* Step 1, left side: the folder, the subject, and a summary of what will be used. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const parts = {};
  const FOLDERS_KEPT = 20; // whose choices are remembered

  LT.leftOut = () => LT.value("data.leave_out") || [];
  LT.folder = () => LT.state.values["data.train_data_dir"] || "";
  /** What defines the dataset: the folder, or the files and tables given instead. */
  LT.source = () =>
    LT.folder() ||
    LT.value("data.dataset_config") ||
    LT.value("data.in_json") ||
    (LT.value("data.subsets") || []).map((table) => table.image_dir || table.metadata_file).join(" ");
  const reviewed = () => LT.state.looked[LT.source()] || {};
  /** Pictures that need a look and were not marked as OK. */
  LT.picturesToReview = () =>
    LT.cache.pictures ? LT.cache.pictures.pictures.filter((picture) => LT.needsLook(picture) && !reviewed()[picture.key]) : [];
  LT.markReviewed = (pictures) => {
    const reviewedNow = (LT.state.looked[LT.source()] = { ...reviewed() });
    pictures.forEach((picture) => (reviewedNow[picture.key] = true));
    LT.saveState();
    LT.emit("looked");
  };
  LT.leaveOut = (pictures, leave) => {
    const folder = LT.folder();
    const changed = pictures.map((picture) => picture.key).filter((key) => LT.leftOut().includes(key) !== leave);
    const mark = (out, leaveThem) => [...out.filter((key) => !changed.includes(key)), ...(leaveThem ? changed : [])];
    LT.set({ "data.leave_out": mark(LT.leftOut(), leave) });
    const undo = () => LT.changeChoice(folder, "out", (out) => mark(out || [], !leave));
    const words = leave
      ? LT.tn(pictures.length, "{n} picture is left out.", "{n} pictures are left out.")
      : LT.tn(pictures.length, "{n} picture is used again.", "{n} pictures are used again.");
    LT.toast(words, { action: { label: t("Undo"), act: undo } });
  };
  const CHOSEN = { out: "data.leave_out", crops: "data.crops" };
  /** Changes what is left out or cropped in a folder, also in one that is not shown now. */
  LT.changeChoice = (folder, what, change) => {
    if (LT.folder() === folder) return LT.set({ [CHOSEN[what]]: change(LT.state.values[CHOSEN[what]]) });
    LT.state.chosen[folder] = { ...LT.state.chosen[folder], [what]: change((LT.state.chosen[folder] || {})[what]) };
    LT.saveState();
  };
  /** Changes the folder; crops and left-out pictures of the old one are restored when it is chosen again. */
  LT.useFolder = (path) => {
    const saved = (LT.state.chosen[LT.folder()] = { out: LT.state.values["data.leave_out"], crops: LT.state.values["data.crops"] });
    if (!saved.out && !saved.crops) delete LT.state.chosen[LT.folder()];
    Object.keys(LT.state.chosen).slice(0, -FOLDERS_KEPT).forEach((folder) => delete LT.state.chosen[folder]);
    const savedChoice = LT.state.chosen[path] || {};
    LT.set({ "data.train_data_dir": path, "data.leave_out": savedChoice.out, "data.crops": savedChoice.crops });
  };
  /** Whether there is neither a caption nor a word to use instead. */
  LT.captionsMissing = () => {
    const pictures = LT.cache.pictures;
    return Boolean(pictures && pictures.counts.used && !pictures.counts.captions && !LT.value("data.trigger_word") && !LT.classWords());
  };

  const READ_AGAIN = /^(data\.|validate\.|model\.pretrained|loss\.prior)/;
  let newest = null;
  /** Reads the folder again. */
  LT.readPictures = async () => {
    if (!LT.source()) {
      LT.cache.pictures = null;
      LT.cache.picturesProblems = [];
      LT.emit("pictures");
      return;
    }
    newest = newest || LT.latestOnly((config) => LT.post("pictures", { config }));
    parts.left.classList.add("lt-reading");
    try {
      const repeats = LT.value("data.num_repeats");
      const response = await newest(LT.configAsEntered());
      if (!response) return;
      LT.cache.pictures = { ...response, asked: repeats };
      if (response.looking && response.looking.done < response.looking.total) window.setTimeout(LT.readPictures, 1500);
      LT.cache.picturesProblems = response.problems || [];
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      LT.cache.pictures = null;
      LT.cache.picturesProblems = error.problems;
    }
    parts.left.classList.remove("lt-reading");
    LT.emit("pictures");
  };

  LT.buildPictures = (panel) => {
    parts.left = h("div.lt-left");
    parts.right = h("div.lt-right");
    LT.fill(panel, parts.left, parts.right);
    buildLeft();
    LT.buildThumbs(parts.right);
    const readSoon = LT.debounce(LT.readPictures, 400);
    LT.on("form", (paths) => paths.some((path) => READ_AGAIN.test(path)) && readSoon());
    LT.on("status", ({ before }) => {
      if (before && before !== LT.cache.status && before.edits !== LT.cache.status.edits && !LT.isUploading()) LT.emit("edited");
    });
    ["edited", "seen"].forEach((name) => LT.on(name, readSoon));
    ["pictures", "looked", "form"].forEach((name) => LT.on(name, paintSummary));
    LT.on("filter", paintNext);
    paintSummary();
  };

  const problemAt = (path) => (LT.cache.picturesProblems || []).find((problem) => problem.path === path);
  LT.picturesProblemAt = problemAt;

  const folderField = () => {
    const field = h("input.lt-input", {
      id: "lora_trainer_f_data.train_data_dir",
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      placeholder: t("a folder of pictures"),
      onchange: () => LT.useFolder(field.value.trim().replace(/^"(.*)"$/, "$1")),
    });
    field.addEventListener("keydown", (event) => event.key === "Enter" && field.blur());
    LT.chooseFolder = () => LT.pickFolder(LT.folder()).then((path) => path && LT.useFolder(path));
    return LT.fieldFrame({
      id: "data.train_data_dir",
      label: t("Folder"),
      help: LT.options.get("data.train_data_dir").help,
      control: h("div.lt-withbutton", {},
        field,
        h("button.lt-button.lt-browse", { "aria-label": t("Choose a folder"), title: t("Choose a folder"), onclick: LT.chooseFolder }, "…"),
      ),
      hint: () => (LT.cache.pictures ? LT.cache.pictures.understood : ""),
      wrong: () => LT.source() && (problemAt("data.train_data_dir") || (!LT.cache.pictures && (LT.cache.picturesProblems || [])[0])),
      update: () => document.activeElement !== field && (field.value = LT.folder()),
    });
  };

  const subjects = () => [
    { value: "person", label: t("Person") },
    { value: "character", label: t("Character") },
    { value: "style", label: t("Style") },
    { value: "object", label: t("Object") },
    { value: "scenery", label: t("Scenery") },
  ];

  /** Applies a field's text while the user types, and at once when the field loses focus. */
  const asTyped = (path, field) => {
    const take = () => {
      const text = field().value.trim() || undefined;
      if (text !== LT.state.values[path]) LT.set({ [path]: text });
    };
    return { oninput: LT.debounce(take, 300), onchange: take };
  };

  const buildLeft = () => {
    const subject = LT.segments(
      subjects(),
      LT.state.subject,
      (value) => {
        LT.state.subject = value;
        LT.saveState();
        LT.emit("subject");
      },
      { label: t("What is it?"), kind: "lt-equal" },
    );
    const trigger = h("input.lt-input", {
      id: "lora_trainer_f_data.trigger_word",
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      ...asTyped("data.trigger_word", () => trigger),
    });
    const tokens = h("span.lt-inside");
    const words = h("input.lt-input", {
      id: "lora_trainer_f_data.class_tokens",
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      ...asTyped("data.class_tokens", () => words),
    });
    parts.summary = h("div.lt-card.lt-summary");
    parts.next = h("div.lt-next");
    const tokenWords = () => {
      const triggerInfo = LT.cache.pictures && LT.cache.pictures.trigger;
      tokens.textContent =
        triggerInfo && trigger.value.trim() && triggerInfo.tokens ? LT.tn(triggerInfo.tokens, "{n} token", "{n} tokens") : "";
      if (document.activeElement !== trigger) trigger.value = LT.state.values["data.trigger_word"] || "";
    };
    const triggerJudgement = () => {
      const triggerInfo = LT.cache.pictures && LT.cache.pictures.trigger;
      if (!triggerInfo || !LT.state.values["data.trigger_word"]) return "";
      return triggerInfo.warning
        ? h("span.lt-warn", {}, LT.icon("warning"), triggerInfo.warning)
        : h("span.lt-good", {}, LT.icon("check"), t("Not an ordinary word, not a known tag"));
    };
    LT.fill(
      parts.left,
      h("div.lt-scroll", {},
        folderField(),
        LT.moreFolders(),
        LT.dropZone(),
        h("div.lt-field", {},
          h("div.lt-label", {},
            h("label", {}, t("What is it?")),
            LT.help(
              t("Decides what Suggest settings proposes: how often each picture is seen, rank and learning rates."),
              t("What is it?"),
            ),
          ),
          subject,
        ),
        LT.fieldFrame({
          id: "data.trigger_word",
          label: t("Trigger word"),
          help: LT.options.get("data.trigger_word").help,
          control: h("div.lt-withinside", {}, trigger, tokens),
          hint: triggerJudgement,
          wrong: () => problemAt("data.trigger_word"),
          update: tokenWords,
        }),
        LT.fieldFrame({
          id: "data.class_tokens",
          label: t("Class word"),
          help: LT.options.get("data.class_tokens").help,
          control: words,
          wrong: () => problemAt("data.class_tokens"),
          update: () => {
            words.placeholder = LT.state.values["data.class_tokens"]
              ? ""
              : LT.classWords() || { style: "", scenery: "" }[LT.state.subject] || t("girl, dog, building…");
            if (document.activeElement !== words) words.value = LT.state.values["data.class_tokens"] || "";
          },
        }),
        parts.summary,
      ),
      parts.next,
    );
    LT.on("subject", LT.paintFields);
  };

  /* ---- what will be used ---- */

  const LINES = [
    ["broken", () => t("left out")],
    ["not-a-picture", () => t("left out")],
    ["too-small", () => t("left out")],
    ["small", () => (LT.value("data.bucket_no_upscale") ? t("used") : t("used, enlarged"))],
    ["copy", () => t("used")],
  ];
  const INFOS = ["rotated", "transparent", "wrong-ending"];
  const countOf = (note) =>
    LT.cache.pictures.pictures.filter((picture) => picture.notes.includes(note) && !LT.leftOut().includes(picture.key)).length;
  const infoLine = () => {
    const infos = INFOS.filter(countOf);
    const link = (note) =>
      h("button", { onclick: () => LT.filter(note) }, LT.icon(LT.NOTES[note].icon), `${LT.count(countOf(note))} ${LT.NOTES[note].word()}`);
    return infos.length > 0 && h("div.lt-infos", {}, infos.map(link));
  };


  const noteLine = ([note, what]) => {
    const count = countOf(note);
    const shown = LT.NOTES[note];
    return (
      count > 0 &&
      h("button.lt-line-note", { onclick: () => LT.filter(note) },
        LT.icon(shown.icon, `lt-${shown.look}`),
        `${LT.count(count)} ${shown.word()}`,
        h("span.lt-muted", {}, "· ", what()),
      )
    );
  };

  const paintSummary = () => {
    const pictures = LT.cache.pictures;
    parts.summary.hidden = !pictures;
    paintNext();
    if (!pictures) return;
    const counts = pictures.counts;
    const most = Math.max(...pictures.buckets.map((bucket) => bucket.count), 1);
    const bars = [...pictures.buckets].sort((a, b) => b.count - a.count);
    const topBars = bars.slice(0, 6);
    const rest = bars.slice(6).reduce((sum, bucket) => sum + bucket.count, 0);
    LT.fill(
      parts.summary,
      h("div.lt-title", {}, LT.tn(counts.used, "{n} picture will be used", "{n} pictures will be used")),
      LINES.map(noteLine),
      infoLine(),
      LT.leftOut().length > 0 &&
        h("button.lt-line-note", { onclick: () => LT.filter("out") },
          LT.icon("cross", "lt-muted"),
          LT.tn(LT.leftOut().length, "{n} left out by you", "{n} left out by you"),
        ),
      LT.cropCount() > 0 &&
        h("button.lt-line-note", { onclick: () => LT.filter("cropped") },
          LT.icon("crop", "lt-muted"),
          LT.tn(LT.cropCount(), "{n} cropped by you", "{n} cropped by you"),
        ),
      (LT.cache.picturesProblems || [])
        .filter((problem) => !/^(validate\.data_dir|data\.(reg_data_dir|train_data_dir|mask|alpha))/.test(problem.path))
        .map((problem) => LT.problem(problem)),
      pictures.warnings.map((warning) => h("div.lt-line-note", {}, LT.icon("warning", "lt-note"), h("span", {}, warning))),
      LT.groupLines(pictures),
      bars.length > 0 &&
        h("div.lt-buckets", {},
          h("div.lt-buckethead", {}, h("span", {}, t("Sizes in training")), h("span", {}, t("pictures"))),
          topBars.map((bucket) =>
            h("div.lt-bucket", {},
              h("span", {}, LT.size(bucket.width, bucket.height)),
              h("i", {}, h("i", { style: { width: `${(100 * bucket.count) / most}%` } })),
              h("b", {}, LT.count(bucket.count)),
            ),
          ),
          rest > 0 &&
            h("div.lt-muted", {}, t("{n} more sizes with {count} pictures", { n: bars.length - topBars.length, count: LT.count(rest) })),
        ),
      LT.masksLine(pictures),
      LT.validationLine(pictures),
    );
  };

  const paintNext = () => {
    const waiting = LT.picturesToReview();
    const looking = LT.cache.filter === "look";
    const captions = (kind) => LT.button(t("Captions"), { kind, after: "right", onclick: () => LT.goToStep("captions") });
    if (!LT.cache.pictures) LT.fill(parts.next);
    else if (waiting.length && looking) {
      LT.fill(
        parts.next,
        LT.button(LT.tn(waiting.length, "OK as it is", "These {n} are OK as they are"), {
          kind: "primary.lt-wide",
          onclick: () => {
            LT.markReviewed(waiting);
            LT.filter("all");
          },
        }),
        captions(""),
      );
    } else if (waiting.length) {
      LT.fill(
        parts.next,
        LT.button(LT.tn(waiting.length, "Look at this one", "Look at these {n}"), {
          kind: "primary.lt-wide",
          onclick: () => LT.filter("look"),
        }),
        captions(""),
      );
    } else { LT.fill(parts.next, captions("primary.lt-wide"));
    }
  };
})();
