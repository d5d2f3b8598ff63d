/* Step 2: each picture with its caption as the model will read it; editing one at a time. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const AT_ONCE = 150;
  const parts = {};
  const view = { unit: "tags", sort: "most", search: "", tag: "", only: "", epoch: 1, editing: null };
  let isStale = true;
  let cardCount = 0;
  let newest = null;

  /** Reads the captions again when the step is shown next, or now if it is. */
  const read = async () => {
    if (LT.state.step !== "captions" || !isStale) return;
    if (!LT.source()) {
      LT.cache.captions = null;
      paint();
      return;
    }
    isStale = false;
    newest = newest || LT.latestOnly((config, epoch) => LT.post("captions", { config, epoch }));
    try {
      const response = await newest(LT.config(), view.epoch);
      if (!response) return;
      LT.cache.captions = response;
      LT.cache.captionsProblem = null;
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      LT.cache.captions = null;
      LT.cache.captionsProblem = error.problems[0];
    }
    LT.emit("captions");
    paint();
  };
  const readAgain = () => {
    isStale = true;
    read();
  };

  LT.buildCaptions = (panel) => {
    parts.left = h("div.lt-left");
    parts.right = h("div.lt-right");
    LT.fill(panel, parts.left, parts.right);
    buildLeft();
    buildRight();
    LT.on("show captions", read);
    LT.on("pictures", readAgain);
    LT.on("form", (paths) => paths.some((path) => /^(data\.|steps\.|seed$|model\.max_token_length$)/.test(path)) && (isStale = true));
    paint();
  };

  const buildLeft = () => {
    parts.count = h("span.lt-muted");
    const units = [
      { value: "tags", label: t("Tags") },
      { value: "words", label: t("Words") },
    ];
    const search = h("input.lt-input", {
      type: "search",
      spellcheck: "false",
      placeholder: t("Search tags"),
      "aria-label": t("Search tags"),
      "data-search": true,
      oninput: () => {
        view.search = search.value.trim().toLowerCase();
        paintTags();
      },
    });
    const sort = LT.select(
      "lora_trainer_sort",
      [
        { value: "most", label: t("Most used") },
        { value: "name", label: t("By name") },
      ],
      (value) => {
        view.sort = value;
        paintTags();
      },
    );
    sort.paint(view.sort);
    parts.tags = h("div.lt-tags.lt-scroll");
    parts.next = h("div.lt-next");
    LT.fill(
      parts.left,
      h("div.lt-tagshead", {},
        h("b", {}, t("Tags")),
        parts.count,
        h("span.lt-gap"),
        LT.segments(
          units,
          view.unit,
          (unit) => {
            view.unit = unit;
            view.tag = "";
            paint();
          },
          { label: t("What is counted"), kind: "lt-smallsegments" },
        ),
      ),
      h("div.lt-tagstools", {},
        h("div.lt-searchbox", {}, LT.icon("search"), search, LT.key("/")),
        h("div.lt-sort", {}, LT.icon("sort"), sort.element),
      ),
      parts.tags,
      parts.next,
    );
  };
  const buildRight = () => {
    parts.line = h("div.lt-captionline");
    parts.legend = h("div.lt-legend");
    parts.grid = h("div.lt-captiongrid");
    parts.more = h("div");
    parts.scroll = h("div.lt-scroll", {}, parts.grid, parts.more);
    LT.fill(parts.right, parts.line, parts.legend, parts.scroll);
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && addCards(), {
      root: parts.scroll,
      rootMargin: "600px",
    }).observe(parts.more);
  };

  const paint = () => {
    paintTags();
    paintLegend();
    paintCards();
    paintNext();
  };

  /* ---- left: how often each tag occurs ---- */

  const unitsOf = (picture) => (view.unit === "tags" ? tagsOf(picture) : tagsOf(picture).flatMap((tag) => tag.split(/\s+/)));
  const tagsOf = (picture) => String(picture.raw || "").split(/[,\n]/).map((tag) => tag.trim()).filter(Boolean);
  const counted = () => {
    const captions = LT.cache.captions;
    if (view.unit === "tags") return captions.tags.filter((tag) => tag.kind !== "trigger");
    const counts = new Map();
    captions.pictures.forEach((picture) => new Set(unitsOf(picture)).forEach((word) => counts.set(word, (counts.get(word) || 0) + 1)));
    return [...counts].map(([text, count]) => ({ text, count, kind: "plain" }));
  };

  const paintTags = () => {
    const captions = LT.cache.captions;
    parts.count.textContent = "";
    if (!captions) {
      LT.fill(parts.tags);
      return;
    }
    const all = counted();
    parts.count.textContent = t("{n} different", { n: LT.count(all.length) });
    const most = Math.max(1, ...all.map((tag) => tag.count));
    const order = view.sort === "most" ? (a, b) => b.count - a.count : (a, b) => a.text.localeCompare(b.text);
    const list = all.filter((tag) => tag.text.toLowerCase().includes(view.search)).sort(order);
    const trigger = captions.tags.find((tag) => tag.kind === "trigger");
    const top =
      trigger &&
      !view.search &&
      h("div.lt-trigger", {},
        LT.icon("lock"),
        h("b", {}, trigger.text),
        h("span.lt-muted", {}, t("trigger word")),
        h("span.lt-gap"),
        h("span.lt-muted", {}, LT.count(trigger.count)),
      );
    const line = (tag) =>
      h("button.lt-tag", { "aria-pressed": String(tag.text === view.tag), onclick: () => pickTag(tag.text) },
        h("span.lt-clip", {}, tag.text),
        h("i", {}, h("i", { style: { width: `${(100 * tag.count) / most}%` } })),
        h("b", {}, LT.count(tag.count)),
      );
    LT.fill(
      parts.tags,
      top,
      list.slice(0, 1000).map(line),
      !list.length &&
        h("div.lt-muted.lt-pad", {}, all.length ? t("No tag has “{words}” in it.", { words: view.search }) : t("No captions yet.")),
    );
  };
  const pickTag = (tag) => {
    view.tag = view.tag === tag ? "" : tag;
    view.only = "";
    paint();
    const first = parts.grid.querySelector(".lt-hit");
    if (first) first.closest(".lt-capcard").scrollIntoView({ block: "nearest" });
  };

  const paintNext = () => {
    const captions = LT.cache.captions;
    const without = captions ? captions.pictures.filter((picture) => !picture.has_caption).length : 0;
    const toggle = () => { view.only = view.only === "without" ? "" : "without"; paint(); };
    const words = view.only === "without" ? t("Show all") : LT.tn(without, "Show the one without", "Show the {n} without");
    LT.fill(
      parts.next,
      without > 0 && LT.button(words, { kind: "lt-wide", onclick: toggle }),
      LT.button(t("Settings"), { kind: without ? "primary" : "primary.lt-wide", after: "right", onclick: () => LT.goToStep("settings") }),
    );
  };

  /* ---- right: the captions ---- */

  const paintLegend = () => {
    const captions = LT.cache.captions;
    parts.legend.hidden = !captions;
    LT.fill(parts.line);
    if (!captions) {
      const problem = LT.cache.captionsProblem;
      LT.fill(
        parts.line,
        problem
          ? LT.problem(problem)
          : !LT.source() && [
              h("span", {}, t("Choose the folder of your pictures first.")),
              " ",
              h("button.lt-link", { onclick: () => LT.goToStep("pictures") }, t("Pictures")),
            ],
      );
      return;
    }
    LT.fill(parts.line, typeof captions.line === "string" ? highlightFirst(captions.line) : LT.messageText(captions.line));
    const epochs = [...Array(Math.max(1, Math.min(12, LT.epochs() || 10))).keys()].map((index) => ({
      value: String(index + 1),
      label: String(index + 1),
    }));
    const epoch = LT.select("lora_trainer_epoch", epochs, (value) => {
      view.epoch = Number(value);
      readAgain();
    });
    epoch.paint(String(view.epoch));
    const dropout = LT.value("data.caption_dropout_rate");
    const trigger = LT.value("data.trigger_word");
    const words = LT.classWords();
    LT.fill(
      parts.legend,
      h("label.lt-inline", { for: "lora_trainer_epoch" }, h("b", {}, t("As the model reads them in epoch")), epoch.element),
      trigger && h("span", {}, h("b.lt-accent", {}, trigger), " ", t("trigger, kept in front")),
      words && h("span", {}, h("u", {}, words), " ", t("class words")),
      h("span", {}, LT.icon("shuffle"), " ", LT.value("data.shuffle_caption") ? t("shuffled anew each epoch") : t("order kept")),
      h("span", {}, dropout ? t("dropout: {share}", { share: LT.percent(dropout) }) : t("dropout: off")),
      h("span.lt-gap"),
      view.tag &&
        h(
          "button.lt-link",
          {
            onclick: () => {
              view.only = view.only === "tag" ? "" : "tag";
              paint();
            },
          },
          view.only === "tag" ? t("Show all") : t("Only “{tag}”", { tag: view.tag }),
        ),
      h("button.lt-link", { onclick: () => LT.openBatches() }, t("Show the first batches")),
      h("button.lt-link", { onclick: () => LT.showOption("data.shuffle_caption") }, t("Change")),
    );
  };
  /** "28 of 33 have captions (.txt) · 5 will use: …": the first part is strong. */
  const highlightFirst = (line) => {
    const [first, ...rest] = line.split(" · ");
    return [h("b", {}, first), rest.length > 0 && h("span", {}, "  ·  " + rest.join(" · "))];
  };

  const list = () => {
    const pictures = LT.cache.captions ? LT.cache.captions.pictures : [];
    if (view.only === "without") return pictures.filter((picture) => !picture.has_caption);
    if (view.only === "tag" && view.tag) return pictures.filter((picture) => unitsOf(picture).includes(view.tag));
    return pictures;
  };
  const paintCards = () => {
    if (view.editing) return; // what is being written must not vanish; done when it is saved or cancelled
    const [top, before] = [parts.scroll.scrollTop, cardCount];
    cardCount = 0;
    LT.fill(parts.grid);
    do addCards();
    while (cardCount < before && cardCount < list().length);
    parts.scroll.scrollTop = top;
  };
  const addCards = () => {
    const pictures = list();
    pictures.slice(cardCount, cardCount + AT_ONCE).forEach((picture) => parts.grid.append(card(picture)));
    cardCount = Math.min(pictures.length, cardCount + AT_ONCE);
  };

  const card = (picture) => {
    const element = h("div.lt-capcard", {
      tabindex: 0,
      "data-key": picture.key,
      onclick: (event) => !event.target.closest("textarea, button") && edit(picture, element),
      onkeydown: (event) => event.key === "Enter" && event.target === element && edit(picture, element),
    });
    fillCard(element, picture);
    return element;
  };
  const fillCard = (element, picture) => {
    element.classList.remove("lt-editing");
    LT.fill(
      element,
      h("div.lt-picture", {}, LT.portrait(picture.path)),
      h("div.lt-captiontext", {},
        h("div.lt-name", {}, picture.name),
        h("div.lt-read", {}, readWords(picture)),
        h("div.lt-foot", {}, h("span", {}, picture.has_caption ? "" : t("no .txt file")), h("span.lt-gap"), tokens(picture)),
      ),
    );
  };
  const tokens = (picture) =>
    h(
      picture.tokens > picture.limit ? "span.lt-warn" : "span",
      { title: t("Tokens of the caption; what is over the limit is not read.") },
      t("{n} of {limit}", { n: picture.tokens, limit: picture.limit }),
    );

  /** Highlights the trigger word, also where the caption contains it already. */
  const withTrigger = (text) => {
    const trigger = LT.value("data.trigger_word");
    const index = trigger ? text.toLowerCase().indexOf(trigger.toLowerCase()) : -1;
    return index < 0
      ? text
      : [text.slice(0, index), h("b.lt-accent", {}, text.slice(index, index + trigger.length)), text.slice(index + trigger.length)];
  };
  const readParts = (captionParts) => {
    const pieces = [];
    let shuffling = false;
    captionParts.forEach((part, index) => {
      pieces.push(part.before ?? (index ? ", " : ""));
      if (part.kind === "shuffled" && !shuffling) {
        pieces.push(LT.icon("shuffle", "lt-inlineicon"), " ");
        shuffling = true;
      }
      const hit = view.tag && (view.unit === "tags" ? part.text === view.tag : part.text.split(/\s+/).includes(view.tag));
      if (part.kind === "trigger") pieces.push(h("b.lt-accent", {}, part.text));
      else if (part.kind === "class") pieces.push(h("u", {}, part.text));
      else pieces.push(hit ? h("b.lt-accent.lt-hit", {}, part.text) : withTrigger(part.text));
    });
    return pieces.length ? pieces : h("span.lt-muted", {}, t("(empty)"));
  };
  const readWords = (picture) =>
    picture.dropped ? h("span.lt-muted", {}, t("(seen without its caption in this epoch)")) : readParts(picture.parts);

  /* ---- editing one ---- */

  const edit = (picture, element) => {
    if (element.classList.contains("lt-editing")) return;
    if (picture.is_cut) {
      LT.toast(t("The caption of {name} is too long to be edited here: open {file}.", { name: picture.name, file: picture.caption_file }));
      return;
    }
    if (view.editing) {
      view.editing();
      element = parts.grid.querySelector(`[data-key="${CSS.escape(picture.key)}"]`) || element;
    }
    const area = h("textarea", {
      value: picture.raw || "",
      spellcheck: "false",
      rows: 3,
      "aria-label": t("Caption of {name}", { name: picture.name }),
    });
    const cancel = () => {
      view.editing = null;
      fillCard(element, picture);
      paintCards();
    };
    const save = () => store(picture, area.value.trim(), cancel);
    area.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
    });
    area.addEventListener("input", () => fitHeight(area));
    element.classList.add("lt-editing");
    LT.fill(
      element,
      h("div.lt-picture", {}, h("img", { src: LT.thumbnail(picture.path), alt: "" })),
      h("div.lt-captiontext", {},
        h("div.lt-name", {},
          h("span.lt-clip", {}, picture.name),
          h("span.lt-gap"),
          h("span.lt-accent", {}, LT.icon("pencil"), t("editing the .txt")),
        ),
        area,
        h("div.lt-foot", {},
          LT.button(t("Save"), { kind: "small.accent", key: "⏎", onclick: save }),
          LT.button(t("Cancel"), { kind: "small", onclick: cancel }),
          h("span.lt-gap"),
          tokens(picture),
        ),
      ),
    );
    view.editing = cancel;
    fitHeight(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  };
  const fitHeight = (area) => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
  };

  /** Puts the previous caption back, unless it was changed again since. */
  const takeBack = async (picture, text, previous) => {
    try {
      const { written } = await LT.post("caption", { path: picture.path, text: previous, instead_of: text });
      if (!written) LT.toast(t("The caption of {name} was changed again since; it stays.", { name: picture.name }));
    } catch (error) {
      LT.showError(error);
    }
    readAgain();
  };
  const store = async (picture, text, close) => {
    try {
      const { old: previous } = await LT.post("caption", { path: picture.path, text });
      close();
      LT.toast(t("The caption of {name} is saved.", { name: picture.name }), {
        kind: "good",
        action: { label: t("Undo"), act: () => takeBack(picture, text, previous) },
      });
      readAgain();
      LT.readPictures();
    } catch (error) {
      LT.showError(error);
    }
  };

  /** Keys of this step: Esc clears the selected tag. */
  LT.captionsKey = (event) => {
    if (event.key !== "Escape" || !(view.tag || view.only)) return false;
    view.tag = view.only = "";
    paint();
    return true;
  };
})();
