/* Step 1, right side: every picture with its verdict, filters; choosing several, cropping them and leaving them out. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const AT_ONCE = 240; // cards made in one frame, so that 2 000 pictures do not hold up the page
  const parts = {};
  const cards = new Map();
  const heads = new Map(); // of folders, where there are several
  let chosen = new Set();
  let anchor = null;
  let lastKey = "";

  LT.cache.filter = "all";
  LT.filter = (filter) => {
    LT.cache.filter = filter;
    paint();
    LT.emit("filter");
  };

  const FILTERS = {
    all: () => true,
    look: (picture) => LT.needsLook(picture),
    cropped: (picture) => LT.isCropped(picture),
    out: (picture) => !picture.usable,
    masked: (picture) => "mask" in picture,
    regularisation: (picture) => Boolean(picture.regularisation),
    validation: (picture) => picture.validation,
  };
  /** A filter for a single note, as the lines of the summary use it. */
  const hasNote = (note) => (picture) => picture.notes.includes(note) && (note === "left-out" || !LT.leftOut().includes(picture.key));
  const test = (filter) => FILTERS[filter] || hasNote(filter);
  const pictures = () => (LT.cache.pictures ? LT.cache.pictures.pictures : []);
  const shown = () => pictures().filter(test(LT.cache.filter));

  LT.buildThumbs = (right) => {
    const slider = h("input.lt-slider", {
      type: "range",
      min: 80,
      max: 260,
      step: 4,
      value: LT.state.thumbs,
      "aria-label": t("Size of the pictures"),
      oninput: () => resize(Number(slider.value)),
    });
    parts.filters = h("div.lt-filters");
    parts.grid = h("div.lt-thumbs", { role: "listbox", "aria-multiselectable": "true", "aria-label": t("Pictures") });
    parts.empty = h("div.lt-empty");
    parts.bar = h("div.lt-selected");
    parts.scroll = h("div.lt-scroll.lt-thumbscroll", {}, parts.empty, parts.grid);
    parts.size = h("label.lt-size", {}, t("Size"), slider);
    LT.fill(right, h("div.lt-toolbar", {}, parts.filters, h("span.lt-gap"), parts.size), parts.scroll, parts.bar);
    resize(LT.state.thumbs);
    new ResizeObserver(() => LT.root().style.setProperty("--lt-above", `${parts.bar.offsetHeight}px`)).observe(parts.bar);
    parts.grid.addEventListener("click", onClick);
    parts.grid.addEventListener("keydown", onKey);
    LT.takeDrops(right);
    ["pictures", "looked"].forEach((name) => LT.on(name, paint));
    paint();
  };

  const resize = (size) => {
    LT.state.thumbs = size;
    LT.saveState();
    parts.grid.style.setProperty("--thumb", `${size}px`);
  };

  const paint = () => {
    const all = pictures();
    const counts = Object.fromEntries(Object.entries(FILTERS).map(([name, test]) => [name, all.filter(test).length]));
    const alone = LT.cache.filter in LT.NOTES ? LT.cache.filter : "";
    if (alone) counts[alone] = all.filter(test(alone)).length;
    if (LT.cache.filter !== "all" && !counts[LT.cache.filter]) LT.cache.filter = "all";
    const choices = [
      { value: "all", label: t("All {n}", { n: LT.count(counts.all) }) },
      counts.look && { value: "look", icon: "warning", label: t("Needs a look {n}", { n: LT.count(counts.look) }) },
      counts.cropped && { value: "cropped", label: t("Cropped {n}", { n: LT.count(counts.cropped) }) },
      counts.out && { value: "out", label: t("Left out {n}", { n: LT.count(counts.out) }) },
      counts.masked && { value: "masked", label: t("Masked {n}", { n: LT.count(counts.masked) }) },
      counts.regularisation && { value: "regularisation", label: t("Regularisation {n}", { n: LT.count(counts.regularisation) }) },
      counts.validation && { value: "validation", label: t("Validation {n}", { n: LT.count(counts.validation) }) },
      counts[alone] && {
        value: alone,
        icon: LT.NOTES[alone].icon,
        label: t("{what} {n}", { what: LT.NOTES[alone].word(), n: LT.count(counts[alone]) }),
      },
    ].filter(Boolean);
    LT.fill(parts.filters, all.length > 0 && LT.segments(choices, LT.cache.filter, LT.filter, { label: t("Which pictures") }));
    paintCards();
    paintEmpty();
    paintBar();
  };

  const paintEmpty = () => {
    parts.empty.hidden = pictures().length > 0;
    parts.size.hidden = !parts.empty.hidden;
    if (!parts.empty.hidden) {
      const reading = LT.source() && !(LT.cache.picturesProblems || []).length;
      LT.fill(
        parts.empty,
        LT.icon(reading ? "search" : "folder"),
        h("b", {}, reading ? t("Reading the folder…") : t("Choose the folder of your pictures")),
        !reading && h("span", {}, t("Or drop pictures here. 15 to 40 pictures of one subject are a good beginning.")),
        !reading && LT.button(t("Choose a folder"), { icon: "folder", kind: "primary", onclick: LT.chooseFolder }),
      );
    }
  };

  const paintCards = () => {
    const list = shown();
    const key = list.map((picture) => `${picture.group}|${picture.key}`).join("\n");
    chosen = new Set([...chosen].filter((key) => list.some((picture) => picture.key === key)));
    if (key !== lastKey) {
      lastKey = key;
      cards.clear();
      heads.clear();
      LT.fill(parts.grid);
      addCards(list, 0, key);
    } else {
      list.forEach((picture) => cards.has(picture.key) && refresh(picture));
      heads.forEach((head, group) => groups()[group] && LT.fill(head, ...LT.groupHead(groups()[group]).childNodes));
    }
  };
  const groups = () => (LT.cache.pictures && LT.cache.pictures.groups) || [];
  const headFor = (picture) => {
    if (groups().length < 2 || heads.has(picture.group)) return;
    heads.set(picture.group, LT.groupHead(groups()[picture.group]));
    parts.grid.append(heads.get(picture.group));
  };
  /** Shows the pictures of a folder. */
  LT.toGroup = (group) => {
    LT.filter("all");
    window.setTimeout(() => heads.has(group) && heads.get(group).scrollIntoView({ block: "start" }), 50);
  };
  const addCards = (list, from, key) => {
    if (key !== lastKey) return;
    list.slice(from, from + AT_ONCE).forEach((picture, index) => {
      const card = h("div.lt-thumb", { role: "option", tabindex: from + index === 0 ? 0 : -1, "data-key": picture.key });
      cards.set(picture.key, card);
      headFor(picture);
      parts.grid.append(card);
      refresh(picture);
    });
    if (from + AT_ONCE < list.length) window.requestAnimationFrame(() => addCards(list, from + AT_ONCE, key));
  };

  const refresh = (picture) => {
    const card = cards.get(picture.key);
    const drawnAs = JSON.stringify(picture);
    card.setAttribute("aria-selected", String(chosen.has(picture.key)));
    if (card.dataset.drawn === drawnAs) return;
    card.dataset.drawn = drawnAs;
    card.title = LT.cardTitle(picture);
    card.classList.toggle("lt-unused", !picture.usable);
    LT.fill(card, LT.cardOf(picture));
  };

  /* ---- choosing ---- */

  const choose = (key, range) => {
    const keys = shown().map((picture) => picture.key);
    if (range && anchor !== null && keys.includes(anchor)) {
      const [from, to] = [keys.indexOf(anchor), keys.indexOf(key)].sort((a, b) => a - b);
      keys.slice(from, to + 1).forEach((one) => chosen.add(one));
    } else {
      chosen.has(key) ? chosen.delete(key) : chosen.add(key);
      anchor = key;
    }
    paintChosen();
  };
  /** Chooses these pictures and no others, and shows the first. */
  LT.choosePictures = (keys) => {
    if (!keys.every((key) => cards.has(key))) LT.filter("all");
    chosen = new Set(keys.filter((key) => pictures().some((picture) => picture.key === key)));
    paintChosen();
    const first = cards.get(keys[0]);
    if (first) first.scrollIntoView({ block: "center" });
  };
  const paintChosen = () => {
    cards.forEach((card, key) => card.setAttribute("aria-selected", String(chosen.has(key))));
    paintBar();
  };
  const onClick = (event) => {
    const card = event.target.closest(".lt-thumb");
    if (!card) return;
    focusCard(card);
    choose(card.dataset.key, event.shiftKey);
  };
  const focusCard = (card) => {
    parts.grid.querySelectorAll('[tabindex="0"]').forEach((other) => (other.tabIndex = -1));
    card.tabIndex = 0;
    card.focus({ preventScroll: false });
  };
  const onKey = (event) => {
    const card = event.target.closest(".lt-thumb");
    if (!card) return;
    const all = [...parts.grid.querySelectorAll(".lt-thumb")];
    const across = Math.max(1, all.filter((other) => other.offsetTop === all[0].offsetTop).length);
    const offset = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (offset) {
      const next = all[Math.max(0, Math.min(all.length - 1, all.indexOf(card) + offset))];
      focusCard(next);
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === " ") {
      choose(card.dataset.key, event.shiftKey);
      event.preventDefault();
    }
  };

  const chosenPictures = () => pictures().filter((picture) => chosen.has(picture.key));
  const paintBar = () => {
    const list = chosenPictures();
    parts.bar.hidden = !list.length;
    parts.scroll.classList.toggle("lt-under", list.length > 0);
    if (!list.length) return;
    const canLeave = list.some((picture) => !LT.leftOut().includes(picture.key));
    const canOk = list.some((picture) => LT.picturesToReview().includes(picture));
    const names = list.map((picture) => LT.stem(picture.name)).join(", ");
    LT.fill(
      parts.bar,
      list.length === 1 && LT.remedies(list[0]),
      h("div.lt-selectedrow", {},
        h("b", {}, t("{n} selected", { n: LT.count(list.length) })),
        h("span.lt-muted.lt-clip", {}, names),
        h("span.lt-gap"),
        canOk &&
          LT.button(t("OK as it is"), {
            icon: "check",
            onclick: () => {
              LT.markReviewed(list.filter((picture) => LT.needsLook(picture)));
              clear();
            },
          }),
        LT.button(t("Crop"), { icon: "crop", key: "C", onclick: () => LT.openCrop(list) }),
        list.some((picture) => picture.frame) &&
          LT.button(t("Remove crop"), {
            onclick: () => LT.crop(list.filter((picture) => picture.frame).map((picture) => [picture.key, null])),
          }),
        canLeave
          ? LT.button(t("Leave out"), { key: "X", onclick: () => leave(true) })
          : LT.button(t("Use again"), { key: "X", onclick: () => leave(false) }),
        LT.button(t("Clear"), { kind: "plain", key: "Esc", onclick: clear }),
      ),
    );
  };
  const leave = (out) => {
    LT.leaveOut(chosenPictures(), out);
    clear();
  };
  const clear = () => {
    chosen.clear();
    paintChosen();
  };

  /** Keys of this step: C crops the chosen, X leaves the chosen out (or takes them back), Esc clears. True when the key was taken. */
  LT.picturesKey = (event) => {
    if (!chosen.size) return false;
    if (event.key === "Escape") clear();
    else if (event.key.toLowerCase() === "c") LT.openCrop(chosenPictures());
    else if (event.key.toLowerCase() === "x") leave(chosenPictures().some((picture) => !LT.leftOut().includes(picture.key)));
    else return false;
    return true;
  };
})();
