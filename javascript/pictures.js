/* Step 1, left side: the folder, what is learnt, what will be used. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const parts = {};

  /** Notes that ask for a look, and how each is shown. Rotated and transparent are information. */
  LT.NOTES = {
    broken: { icon: "cross", look: "bad", word: () => t("broken") },
    "not-a-picture": { icon: "cross", look: "bad", word: () => t("not a picture") },
    "too-small": { icon: "cross", look: "bad", word: () => t("too small") },
    small: { icon: "small", look: "note", word: () => t("small") },
    copy: { icon: "copy", look: "note", word: () => t("near-copy") },
    rotated: { icon: "rotated", look: "plain", word: () => t("rotated") },
    transparent: { icon: "grid", look: "plain", word: () => t("transparent") },
    "left-out": { icon: "cross", look: "plain", word: () => t("left out") },
  };
  const TO_LOOK_AT = ["broken", "not-a-picture", "too-small", "small", "copy"];
  LT.leftOut = () => LT.value("data.leave_out") || [];
  LT.folder = () => LT.state.values["data.train_data_dir"] || "";
  LT.needsLook = (picture) => picture.notes.some((note) => TO_LOOK_AT.includes(note)) && !LT.leftOut().includes(picture.key);
  const lookedAt = () => LT.state.looked[LT.folder()] || {};
  /** Pictures that need a look and have not been found to be OK. */
  LT.toLookAt = () => (LT.seen.pictures ? LT.seen.pictures.pictures.filter((picture) => LT.needsLook(picture) && !lookedAt()[picture.key]) : []);
  LT.isOk = (pictures) => {
    const looked = (LT.state.looked[LT.folder()] = { ...lookedAt() });
    pictures.forEach((picture) => (looked[picture.key] = true));
    LT.keep();
    LT.tell("looked");
  };
  LT.leaveOut = (pictures, leave) => {
    const keys = new Set(LT.leftOut());
    pictures.forEach((picture) => (leave ? keys.add(picture.key) : keys.delete(picture.key)));
    LT.set({ "data.leave_out": [...keys] });
  };
  /** Whether there is neither a caption nor a word to use in its place. */
  LT.captionsMissing = () => {
    const pictures = LT.seen.pictures;
    return Boolean(pictures && pictures.counts.used && !pictures.counts.captions && !LT.value("data.trigger_word") && !LT.classWords());
  };

  const READ_AGAIN = /^(data\.|validate\.|model\.pretrained)/;
  let newest = null;
  /** Reads the folder again. */
  LT.readPictures = async () => {
    if (!LT.folder()) {
      LT.seen.pictures = null;
      LT.seen.picturesProblems = [];
      LT.tell("pictures");
      return;
    }
    newest = newest || LT.newest((config) => LT.post("pictures", { config }));
    parts.left.classList.add("lt-reading");
    try {
      const asked = LT.value("data.num_repeats");
      const answer = await newest(LT.configAsEntered());
      if (!answer) return;
      LT.seen.pictures = { ...answer, asked };
      if (answer.looking && answer.looking.done < answer.looking.total) window.setTimeout(LT.readPictures, 1500); // the rest is being decoded
      LT.seen.picturesProblems = [];
    } catch (error) {
      if (!(error instanceof LT.Refused)) throw error;
      LT.seen.pictures = null;
      LT.seen.picturesProblems = error.problems;
    }
    parts.left.classList.remove("lt-reading");
    LT.tell("pictures");
  };

  LT.buildPictures = (panel) => {
    parts.left = h("div.lt-left");
    parts.right = h("div.lt-right");
    LT.fill(panel, parts.left, parts.right);
    buildLeft();
    LT.buildThumbs(parts.right);
    const soon = LT.later(LT.readPictures, 400);
    LT.on("form", (paths) => paths.some((path) => READ_AGAIN.test(path)) && soon());
    ["pictures", "looked", "form"].forEach((name) => LT.on(name, paintSummary));
    LT.on("filter", paintNext);
    paintSummary();
  };

  const problemAt = (path) => (LT.seen.picturesProblems || []).find((problem) => problem.path === path);

  const folderField = () => {
    const field = h("input.lt-input", { id: "lora_trainer_f_data.train_data_dir", type: "text", spellcheck: "false", autocomplete: "off", placeholder: t("a folder of pictures"), onchange: () => LT.set({ "data.train_data_dir": field.value.trim().replace(/^"(.*)"$/, "$1"), "data.leave_out": undefined }) });
    field.addEventListener("keydown", (event) => event.key === "Enter" && field.blur());
    LT.chooseFolder = () => LT.pickFolder(LT.folder()).then((path) => path && LT.set({ "data.train_data_dir": path, "data.leave_out": undefined }));
    return LT.fieldFrame({
      id: "data.train_data_dir",
      label: t("Folder"),
      help: LT.options.get("data.train_data_dir").help,
      control: h("div.lt-withbutton", {}, field, h("button.lt-button.lt-browse", { "aria-label": t("Choose a folder"), title: t("Choose a folder"), onclick: LT.chooseFolder }, "…")),
      hint: () => (LT.seen.pictures ? LT.seen.pictures.understood : ""),
      wrong: () => LT.folder() && (problemAt("data.train_data_dir") || (LT.seen.picturesProblems || [])[0]),
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

  /** Takes a field's text over while it is written, and at once when the field is left. */
  const asTyped = (path, field) => {
    const take = () => {
      const text = field().value.trim() || undefined;
      if (text !== LT.state.values[path]) LT.set({ [path]: text });
    };
    return { oninput: LT.later(take, 300), onchange: take };
  };

  const buildLeft = () => {
    const subject = LT.segments(subjects(), LT.state.subject, (value) => { LT.state.subject = value; LT.keep(); LT.tell("subject"); }, { label: t("What is it?"), kind: "lt-equal" });
    const trigger = h("input.lt-input", { id: "lora_trainer_f_data.trigger_word", type: "text", spellcheck: "false", autocomplete: "off", ...asTyped("data.trigger_word", () => trigger) });
    const tokens = h("span.lt-inside");
    const words = h("input.lt-input", { id: "lora_trainer_f_data.class_tokens", type: "text", spellcheck: "false", autocomplete: "off", ...asTyped("data.class_tokens", () => words) });
    parts.summary = h("div.lt-card.lt-summary");
    parts.next = h("div.lt-next");
    const tokenWords = () => {
      const found = LT.seen.pictures && LT.seen.pictures.trigger;
      tokens.textContent = found && trigger.value.trim() && found.tokens ? LT.tn(found.tokens, "{n} token", "{n} tokens") : "";
      if (document.activeElement !== trigger) trigger.value = LT.state.values["data.trigger_word"] || "";
    };
    const judged = () => {
      const found = LT.seen.pictures && LT.seen.pictures.trigger;
      if (!found || !LT.state.values["data.trigger_word"]) return "";
      return found.warning ? h("span.lt-warn", {}, LT.icon("warning"), found.warning) : h("span.lt-good", {}, LT.icon("check"), t("Not an ordinary word, not a known tag"));
    };
    LT.fill(
      parts.left,
      h("div.lt-scroll", {},
        folderField(),
        LT.dropZone(),
        h("div.lt-field", {}, h("div.lt-label", {}, h("label", {}, t("What is it?")), LT.help(t("Decides what Suggest settings proposes: how often each picture is seen, rank and learning rates."), t("What is it?"))), subject),
        LT.fieldFrame({ id: "data.trigger_word", label: t("Trigger word"), help: LT.options.get("data.trigger_word").help, control: h("div.lt-withinside", {}, trigger, tokens), hint: judged, wrong: () => problemAt("data.trigger_word"), update: tokenWords }),
        LT.fieldFrame({
          id: "data.class_tokens", label: t("Class word"), help: LT.options.get("data.class_tokens").help, control: words, wrong: () => problemAt("data.class_tokens"),
          update: () => {
            words.placeholder = LT.state.values["data.class_tokens"] ? "" : LT.classWords() || { style: "", scenery: "" }[LT.state.subject] || t("girl, dog, building…");
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

  const noteLine = ([note, what]) => {
    const count = LT.seen.pictures.pictures.filter((picture) => picture.notes.includes(note) && !LT.leftOut().includes(picture.key)).length;
    const shown = LT.NOTES[note];
    return count > 0 && h("button.lt-line-note", { onclick: () => LT.filter("look") }, LT.icon(shown.icon, `lt-${shown.look}`), `${LT.count(count)} ${shown.word()}`, h("span.lt-muted", {}, "· ", what()));
  };

  const paintSummary = () => {
    const pictures = LT.seen.pictures;
    parts.summary.hidden = !pictures;
    paintNext();
    if (!pictures) return;
    const counts = pictures.counts;
    const most = Math.max(...pictures.buckets.map((bucket) => bucket.count), 1);
    const bars = [...pictures.buckets].sort((one, other) => other.count - one.count);
    const few = bars.slice(0, 6);
    const rest = bars.slice(6).reduce((sum, bucket) => sum + bucket.count, 0);
    LT.fill(
      parts.summary,
      h("div.lt-title", {}, LT.tn(counts.used, "{n} picture will be used", "{n} pictures will be used")),
      LINES.map(noteLine),
      LT.leftOut().length > 0 && h("button.lt-line-note", { onclick: () => LT.filter("out") }, LT.icon("cross", "lt-muted"), LT.tn(LT.leftOut().length, "{n} left out by you", "{n} left out by you")),
      [...new Set(pictures.warnings)].map((warning) => h("div.lt-line-note", {}, LT.icon("warning", "lt-note"), h("span", {}, warning))),
      bars.length > 0 && h("div.lt-buckets", {}, h("div.lt-buckethead", {}, h("span", {}, t("Sizes in training")), h("span", {}, t("pictures"))),
        few.map((bucket) => h("div.lt-bucket", {}, h("span", {}, LT.size(bucket.width, bucket.height)), h("i", {}, h("i", { style: { width: `${(100 * bucket.count) / most}%` } })), h("b", {}, LT.count(bucket.count)))),
        rest > 0 && h("div.lt-muted", {}, t("{n} more sizes with {count} pictures", { n: bars.length - few.length, count: LT.count(rest) }))),
      validationLine(pictures),
    );
  };

  const validationLine = (pictures) => {
    const found = pictures.validation || { count: 0 };
    const folder = LT.value("validate.data_dir");
    const words = folder
      ? t("{n} pictures in {folder}, never trained on", { n: LT.count(found.count), folder: LT.fileName(folder) })
      : found.count
        ? t("{n} held back, never trained on", { n: LT.count(found.count) })
        : t("none");
    const change = h("button.lt-link", { "aria-expanded": "false", onclick: () => LT.panel(change, validationChoice(pictures), {}) }, words);
    const wrong = problemAt("validate.data_dir") || LT.problemOf("validate.data_dir");
    return h("div.lt-validation", {}, h("span.lt-muted", {}, t("Validation")), change, wrong && LT.problem(wrong));
  };

  const validationChoice = (pictures) => {
    const total = pictures.counts.used + (LT.value("validate.data_dir") ? 0 : (pictures.validation || {}).count || 0);
    const now = LT.value("validate.data_dir") ? "folder" : LT.value("validate.fraction") > 0 ? "held" : "none";
    const folder = h("input.lt-input", { type: "text", value: LT.value("validate.data_dir"), "aria-label": t("Validation folder"), onchange: () => LT.set({ "validate.data_dir": folder.value.trim(), "validate.fraction": undefined }) });
    const held = h("input.lt-input", { type: "text", inputmode: "numeric", value: Math.round(LT.value("validate.fraction") * total) || Math.min(4, Math.floor(total / 4)) || 1, "aria-label": t("Pictures held back"), onchange: () => holdBack() });
    const holdBack = () => {
      const count = Math.max(1, Math.min(Math.floor(total / 2), Math.round(Number(held.value)) || 1));
      held.value = count;
      LT.set({ "validate.data_dir": undefined, "validate.fraction": Number((count / total).toFixed(6)) });
    };
    const browse = () => LT.pickFolder(folder.value || LT.folder()).then((path) => path && LT.set({ "validate.data_dir": path, "validate.fraction": undefined }));
    const more = h("div");
    const show = (choice) => {
      LT.fill(more, choice === "folder" && h("div.lt-withbutton", {}, folder, h("button.lt-button.lt-browse", { "aria-label": t("Choose a folder"), onclick: () => { LT.closePanel(); browse(); } }, "…")),
        choice === "held" && h("label.lt-inline", {}, held, h("span.lt-muted", {}, t("of {n} pictures are held back", { n: LT.count(total) }))));
    };
    const choices = [{ value: "none", label: t("None") }, { value: "folder", label: t("A folder") }, { value: "held", label: t("Held back") }];
    const choose = (choice) => {
      show(choice);
      if (choice === "none") LT.set({ "validate.data_dir": undefined, "validate.fraction": undefined });
      if (choice === "held") holdBack();
    };
    show(now);
    const why = h("div.lt-helptext", {}, t("Pictures that are never trained on: their loss tells which epoch is best."));
    return h("div.lt-validationchoice", {}, why, LT.segments(choices, now, choose, { label: t("Validation") }), more);
  };

  const paintNext = () => {
    const waiting = LT.toLookAt();
    const looking = LT.seen.filter === "look";
    const captions = (kind) => LT.button(t("Captions"), { kind, after: "right", onclick: () => LT.go("captions") });
    if (!LT.seen.pictures) LT.fill(parts.next);
    else if (waiting.length && looking) LT.fill(parts.next, LT.button(LT.tn(waiting.length, "OK as it is", "These {n} are OK as they are"), { kind: "primary.lt-wide", onclick: () => { LT.isOk(waiting); LT.filter("all"); } }), captions(""));
    else if (waiting.length) LT.fill(parts.next, LT.button(LT.tn(waiting.length, "Look at this one", "Look at these {n}"), { kind: "primary.lt-wide", onclick: () => LT.filter("look") }), captions(""));
    else LT.fill(parts.next, captions("primary.lt-wide"));
  };
})();
