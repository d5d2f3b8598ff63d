/* Step 1, left side: several folders, masks, validation pictures. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /* ---- several folders ---- */

  const MORE = ["data.reg_data_dir", "data.in_json", "data.dataset_config"];
  const isSet = (path) => Boolean(LT.value(path));

  const pathField = (path) => {
    const option = LT.options.get(path);
    const field = h("input.lt-input", {
      type: "text",
      spellcheck: "false",
      autocomplete: "off",
      "aria-label": option.label,
      onchange: () => LT.set({ [path]: field.value.trim().replace(/^"(.*)"$/, "$1") || undefined }),
    });
    const browse = () => LT.pickFolder(field.value || LT.folder()).then((chosen) => chosen && LT.set({ [path]: chosen }));
    const button =
      option.kind === "folder" &&
      h("button.lt-button.lt-browse", { "aria-label": t("Choose a folder"), title: t("Choose a folder"), onclick: browse }, "…");
    return LT.fieldFrame({
      id: path,
      label: option.label,
      help: option.help,
      control: h("div.lt-withbutton", {}, field, button),
      wrong: () =>
        isSet(path) &&
        (LT.picturesProblemAt(path) || (LT.cache.picturesProblems || []).find((problem) => problem.path.startsWith(`${path}.`))),
      update: () => document.activeElement !== field && (field.value = LT.value(path) || ""),
    });
  };

  /** Folders beside the first: of regularisation pictures, or files that describe several. Shown when one is set or asked for. */
  LT.moreFolders = () => {
    let open = false;
    const fields = h("div");
    const tables = h("div.lt-hint");
    const button = h(
      "button.lt-link.lt-more",
      {
        "aria-expanded": "false",
        onclick: () => {
          open = true;
          paint();
          fields.querySelector("input").focus();
        },
      },
      LT.icon("plus"),
      h("span"),
    );
    const folders = new Map();
    const paint = () => {
      const shown = MORE.filter((path) => open || isSet(path));
      shown.forEach((path) => folders.has(path) || folders.set(path, pathField(path)));
      if (fields.dataset.shown !== shown.join()) {
        fields.dataset.shown = shown.join();
        fields.replaceChildren(...shown.map((path) => folders.get(path)));
      }
      shown.forEach((path) => folders.get(path).update());
      button.hidden = shown.length === MORE.length;
      button.lastChild.textContent = isSet(MORE[0]) ? t("Metadata, dataset file…") : t("More sources: class pictures, dataset file…");
      const count = (LT.value("data.subsets") || []).length;
      tables.hidden = !count;
      LT.fill(
        tables,
        count > 0 && [
          LT.tn(
            count,
            "{n} folder with its own options stands in the settings.",
            "{n} folders with their own options stand in the settings.",
          ),
          " ",
          h("button.lt-link", { onclick: () => LT.set({ "data.subsets": undefined }) }, t("Take out")),
        ],
      );
    };
    ["form", "pictures"].forEach((name) => LT.on(name, paint));
    paint();
    return h("div.lt-morefolders", {}, fields, tables, button);
  };

  const KINDS = { trained: "folder", regularisation: "shield", validation: "eye" };
  const kindWord = (kind) => ({ regularisation: t("regularisation"), validation: t("for validation") })[kind] || "";
  /** A folder's settings in a few words. */
  const understood = (group) => [
    kindWord(group.kind),
    LT.tn(group.count, "{n} picture", "{n} pictures"),
    group.kind !== "validation" && group.repeats > 1 && t("× {n} repeats", { n: group.repeats }),
    group.captions ? LT.tn(group.captions, "{n} caption", "{n} captions") : group.words && t("words: {words}", { words: group.words }),
    group.size && LT.size(...group.size),
    group.batch && t("{n} a step", { n: group.batch }),
  ].filter(Boolean).join(" · ");

  /** One line for each folder, where there are several; a click goes to its pictures. */
  LT.groupLines = (pictures) => {
    const groups = pictures.groups || [];
    if (groups.length < 2) return null;
    const line = (group) =>
      h("button.lt-groupline", { title: group.folder, onclick: () => LT.toGroup(group.number) },
        LT.icon(KINDS[group.kind]),
        h("b.lt-clip", {}, group.name),
        h("span.lt-muted", {}, understood(group)),
      );
    return h("div.lt-groups", {},
      h("div.lt-buckethead", {}, h("span", {}, t("Folders")), h("span", {}, LT.count(groups.length))),
      groups.map(line),
    );
  };
  /** The heading above a folder's pictures. */
  LT.groupHead = (group) =>
    h("div.lt-group", { "data-group": group.number, title: group.folder },
      LT.icon(KINDS[group.kind]),
      h("b", {}, group.name),
      h("span.lt-muted", {}, understood(group)),
    );

  /* ---- masks ---- */

  const MASKS = { none: {}, alpha: { "data.alpha_mask": true }, beside: { "data.masks_beside": true }, folder: {} };
  const maskNow = () =>
    LT.value("data.mask_dir") ? "folder" : LT.value("data.masks_beside") ? "beside" : LT.value("data.alpha_mask") ? "alpha" : "none";
  /** Which part of the pictures is learned: masks found and their mean, and the choice of them. Hidden where it is not relevant. */
  LT.masksLine = (pictures) => {
    const current = maskNow();
    const isRelevant =
      current !== "none" ||
      pictures.pictures.some((picture) => picture.notes.includes("transparent")) ||
      pictures.warnings.some((words) => /mask|遮罩|蒙版/i.test(words));
    if (!isRelevant) return null;
    const masks = pictures.masks;
    const words = masks
      ? t("{count} of {all} have masks, {share} % learned on average", masks)
      : current === "none"
        ? t("none")
        : t("none found");
    const change = h("button.lt-link", { "aria-expanded": "false", onclick: () => LT.panel(change, maskChoice(current), {}) }, words);
    const wrong = ["data.mask_dir", "data.masks_beside", "data.alpha_mask"].map(LT.picturesProblemAt).find(Boolean);
    return h("div.lt-choice.lt-masks", {}, h("span.lt-muted", {}, t("Masks")), change, wrong && LT.problem(wrong));
  };
  const maskChoice = (current) => {
    const clear = { "data.alpha_mask": undefined, "data.masks_beside": undefined, "data.mask_dir": undefined };
    const folder = h("input.lt-input", {
      type: "text",
      value: LT.value("data.mask_dir") || "",
      "aria-label": t("Folder of masks"),
      onchange: () => LT.set({ ...clear, "data.mask_dir": folder.value.trim() }),
    });
    const browse = () => LT.pickFolder(folder.value || LT.folder()).then((path) => path && LT.set({ ...clear, "data.mask_dir": path }));
    const more = h("div");
    const show = (choice) =>
      LT.fill(
        more,
        choice === "folder" &&
          h("div.lt-withbutton", {},
            folder,
            h(
              "button.lt-button.lt-browse",
              {
                "aria-label": t("Choose a folder"),
                onclick: () => {
                  LT.closePanel();
                  browse();
                },
              },
              "…",
            ),
          ),
      );
    const choose = (choice) => {
      show(choice);
      if (choice !== "folder") LT.set({ ...clear, ...MASKS[choice] });
    };
    const choices = [
      { value: "none", label: t("None") },
      { value: "alpha", label: t("Transparency") },
      { value: "beside", label: t("Beside"), title: "NAME-masklabel.png" },
      { value: "folder", label: t("A folder") },
    ];
    show(current);
    const why = h("div.lt-helptext", {}, t("Only what is white in a picture's mask, or not transparent in it, is learned."));
    return h("div.lt-validationchoice", {}, why, LT.segments(choices, current, choose, { label: t("Masks") }), more);
  };

  /* ---- validation ---- */

  /** Which pictures are never trained on, and the choice of them. */
  LT.validationLine = (pictures) => {
    const validation = pictures.validation || { count: 0 };
    const folder = LT.value("validate.data_dir");
    const words = folder
      ? LT.tn(validation.count, "{n} picture in {folder}, never trained on", "{n} pictures in {folder}, never trained on", {
          folder: LT.fileName(folder),
        })
      : validation.count
        ? t("{n} held back, never trained on", { n: LT.count(validation.count) })
        : t("none");
    const change = h("button.lt-link", { "aria-expanded": "false", onclick: () => LT.panel(change, validationChoice(pictures), {}) },
      words,
    );
    const wrong = LT.picturesProblemAt("validate.data_dir") || LT.problemOf("validate.data_dir");
    return h("div.lt-choice.lt-validation", {}, h("span.lt-muted", {}, t("Validation")), change, wrong && LT.problem(wrong));
  };

  const validationChoice = (pictures) => {
    const total = pictures.counts.used + (LT.value("validate.data_dir") ? 0 : (pictures.validation || {}).count || 0);
    const current = LT.value("validate.data_dir") ? "folder" : LT.value("validate.fraction") > 0 ? "held" : "none";
    const folder = h("input.lt-input", {
      type: "text",
      value: LT.value("validate.data_dir"),
      "aria-label": t("Validation folder"),
      onchange: () => LT.set({ "validate.data_dir": folder.value.trim(), "validate.fraction": undefined }),
    });
    const fractionInput = h("input.lt-input", {
      type: "text",
      inputmode: "numeric",
      value: Math.round(LT.value("validate.fraction") * total) || Math.min(4, Math.floor(total / 4)) || 1,
      "aria-label": t("Pictures held back"),
      onchange: () => holdBack(),
    });
    const holdBack = () => {
      const count = Math.max(1, Math.min(Math.floor(total / 2), Math.round(Number(fractionInput.value)) || 1));
      fractionInput.value = count;
      LT.set({ "validate.data_dir": undefined, "validate.fraction": Number((count / total).toFixed(6)) });
    };
    const browse = () =>
      LT.pickFolder(folder.value || LT.folder()).then(
        (path) => path && LT.set({ "validate.data_dir": path, "validate.fraction": undefined }),
      );
    const more = h("div");
    const show = (choice) => {
      LT.fill(
        more,
        choice === "folder" &&
          h("div.lt-withbutton", {},
            folder,
            h(
              "button.lt-button.lt-browse",
              {
                "aria-label": t("Choose a folder"),
                onclick: () => {
                  LT.closePanel();
                  browse();
                },
              },
              "…",
            ),
          ),
        choice === "held" &&
          h("label.lt-inline", {}, fractionInput, h("span.lt-muted", {}, t("of {n} pictures are held back", { n: LT.count(total) }))),
      );
    };
    const choices = [
      { value: "none", label: t("None") },
      { value: "folder", label: t("A folder") },
      { value: "held", label: t("Held back") },
    ];
    const choose = (choice) => {
      show(choice);
      if (choice === "none") LT.set({ "validate.data_dir": undefined, "validate.fraction": undefined });
      if (choice === "held") holdBack();
    };
    show(current);
    const why = h("div.lt-helptext", {}, t("Pictures that are never trained on: their loss tells which epoch is best."));
    return h("div.lt-validationchoice", {}, why, LT.segments(choices, current, choose, { label: t("Validation") }), more);
  };
})();
