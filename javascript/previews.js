/* Pictures drawn while training: the newest large, all of them over the epochs at the same seed. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const withoutFlags = (prompt) => String(prompt).replace(/\s--\w[\s\S]*$/, "").trim();

  /** Short names of prompts: the words that they do not have in common. */
  LT.promptNames = (prompts, trigger) => {
    const usesTrigger = (prompt) => Boolean(trigger) && prompt.includes(trigger);
    const isMixed = prompts.some(usesTrigger) && !prompts.every(usesTrigger);
    const split = (prompt) => withoutFlags(prompt).split(trigger || "\n").join(" ").split(/[\s,]+/).filter(Boolean);
    const words = prompts.map(split);
    const alike = words.filter((list, index) => !isMixed || usesTrigger(prompts[index]));
    const end = (list, back) => list[list.length - 1 - back];
    let front = 0;
    while (alike.length > 1 && alike.every((list) => list.length > front + 1 && list[front] === alike[0][front])) front += 1;
    let back = 0;
    while (alike.length > 1 && alike.every((list) => list.length > front + back + 1 && end(list, back) === end(alike[0], back))) back += 1;
    return words.map((list, index) => {
      if (isMixed && !usesTrigger(prompts[index])) return t("Without trigger");
      const rest = list.slice(front, list.length - back).join(" ").replace(/^[,\s]+|[,\s]+$/g, "");
      const name = rest.length > 18 ? `${rest.slice(0, 17)}…` : rest;
      return name ? name[0].toUpperCase() + name.slice(1) : t("Prompt {n}", { n: index + 1 });
    });
  };

  LT.makePreviews = () => {
    const head = h("div.lt-cardhead");
    const big = h("button.lt-bigpreview", { "aria-label": t("Enlarge"), onclick: () => enlarge() });
    const facts = h("div.lt-previewfacts.lt-nophone");
    const short = h("span.lt-muted.lt-smaller.lt-phone");
    const strip = h("div.lt-strip", { role: "listbox", "aria-label": t("Previews over the epochs") });
    const empty = h("div.lt-empty");
    const element = h("div.lt-card.lt-previews", { onkeydown: (event) => arrow(event) },
      head,
      h("div.lt-previewbody", {}, big, facts),
      strip,
      empty,
    );
    const view = { prompt: 0, chosen: null, list: [], data: null, headDrawn: "", stripDrawn: "" };

    const paint = (data, live) => {
      if (view.data && view.data.id !== data.id) Object.assign(view, { prompt: 0, chosen: null, headDrawn: "", stripDrawn: "" });
      view.data = data;
      const prompts = [];
      data.samples.forEach((sample) => { if (!(sample.index in prompts)) prompts[sample.index] = sample.prompt; });
      view.list = data.samples.filter((sample) => sample.index === view.prompt);
      empty.hidden = view.list.length > 0;
      big.hidden = facts.hidden = strip.hidden = !empty.hidden;
      paintHead(prompts, data);
      if (!view.list.length) {
        const promptCount = data.config && data.config.sample && (data.config.sample.prompts || []).length;
        LT.fill(
          empty,
          LT.icon("picture"),
          h("span", {},
            live && promptCount
              ? t("The first preview comes soon.")
              : live
                ? t("No preview prompt: “Preview now” is without effect. Write one in Settings for the next run.")
                : t("This run has no previews."),
          ),
        );
        return;
      }
      paintChosen();
      paintStrip(data);
    };
    const paintHead = (prompts, data) => {
      const key = JSON.stringify([data.id, prompts]);
      if (view.headDrawn === key) return;
      view.headDrawn = key;
      const names = LT.promptNames(prompts.map((prompt) => prompt || ""), ((data.config || {}).data || {}).trigger_word);
      const choices = names.map((label, index) => ({ value: index, label, title: prompts[index] }));
      LT.fill(
        head,
        h("div.lt-title", {}, t("Preview")),
        h("span.lt-gap"),
        short,
        prompts.length > 1
          ? LT.segments(
              choices,
              view.prompt,
              (prompt) => {
                view.prompt = prompt;
                view.stripDrawn = "";
                paint(view.data);
              },
              { label: t("Prompt"), kind: "lt-smallsegments" },
            )
          : prompts.length === 1 && h("span.lt-muted.lt-clip.lt-nophone", { title: prompts[0] }, withoutFlags(prompts[0])),
      );
    };
    const chosen = () => view.list.find((sample) => sample.step === view.chosen) || view.list[view.list.length - 1];

    const paintChosen = () => {
      const sample = chosen();
      short.textContent = [sample.step ? t("epoch {n}", { n: sample.epoch }) : t("before"), t("seed {n}", { n: sample.seed })].join(" · ");
      const source = LT.runFile(view.data.id, sample.path);
      const shown = big.querySelector("img");
      if (!shown) LT.fill(big, h("img", { src: source, alt: withoutFlags(sample.prompt) }));
      else if (shown.getAttribute("src") !== source) shown.setAttribute("src", source);
      const validation = view.data.validations.find((one) => one.step === sample.step);
      const fact = (name, value, strong) =>
        value !== undefined && value !== "" && h("div", {}, h("span", {}, name), h(strong ? "b" : "span", {}, value));
      const move = (offset, label, icon) => h("button.lt-key", { "aria-label": label, onclick: () => step(offset) }, LT.icon(icon));
      LT.fill(
        facts,
        sample.step === 0 ? fact(t("Epoch"), t("before"), true) : fact(t("Epoch"), sample.epoch, true),
        fact(t("Step"), LT.count(sample.step)),
        validation && fact(t("Validation"), LT.loss(validation.loss)),
        fact(t("Weight"), sample.step === 0 ? t("no LoRA") : "1.0"),
        fact(t("Same seed"), sample.seed),
        h("span.lt-gap"),
        h("div.lt-row", {}, move(-1, t("Earlier"), "back"), move(1, t("Later"), "next")),
      );
    };
    const step = (offset) => {
      const index = view.list.indexOf(chosen());
      view.chosen = view.list[Math.max(0, Math.min(view.list.length - 1, index + offset))].step;
      paintChosen();
      mark();
    };
    LT.stepPreview = step;

    const labelOf = (sample) => (sample.step === 0 ? t("before") : oncePerEpoch() ? String(sample.epoch) : LT.count(sample.step));
    const oncePerEpoch = () => new Set(view.list.map((sample) => sample.epoch)).size === view.list.length;
    const paintStrip = (data) => {
      const key = `${view.prompt}|${view.list.map((sample) => sample.path).join("|")}|${data.outcome}`;
      if (key === view.stripDrawn) return mark();
      const atEnd = view.stripDrawn === "" || strip.scrollLeft + strip.clientWidth > strip.scrollWidth - 80;
      view.stripDrawn = key;
      const epochs = (data.plan && data.plan.epochs) || 0;
      const last = view.list[view.list.length - 1];
      const coming =
        !data.outcome && oncePerEpoch() && epochs <= 10
          ? [...Array(Math.max(0, epochs - last.epoch)).keys()].map((index) => last.epoch + index + 1)
          : [];
      const small = (sample) =>
        h(
          "button.lt-small",
          {
            role: "option",
            "data-step": sample.step,
            onclick: () => {
              view.chosen = sample.step;
              paintChosen();
              mark();
            },
          },
          h("img", { src: LT.runFile(data.id, sample.path), alt: "", loading: "lazy" }),
          h("span", {}, labelOf(sample)),
        );
      LT.fill(
        strip,
        view.list.map(small),
        coming.map((epoch) => h("span.lt-small.lt-coming", {}, h("i"), h("span", {}, epoch))),
      );
      strip.style.setProperty("--places", Math.min(11, view.list.length + coming.length));
      mark();
      if (atEnd) strip.querySelector('[aria-selected="true"]').scrollIntoView({ block: "nearest", inline: "end" });
      return null;
    };
    const mark = () => {
      const sample = chosen();
      strip
        .querySelectorAll("button")
        .forEach((button) => button.setAttribute("aria-selected", String(Number(button.dataset.step) === sample.step)));
    };
    const arrow = (event) => {
      const offset = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!offset || event.target.closest(".lt-segments") || !view.list.length) return;
      event.preventDefault();
      event.stopPropagation();
      step(offset);
    };
    const enlarge = () =>
      LT.enlarge(
        () => ({
          source: LT.runFile(view.data.id, chosen().path),
          words: [
            chosen().step ? t("epoch {n}", { n: chosen().epoch }) : t("before"),
            t("step {n}", { n: LT.count(chosen().step) }),
            withoutFlags(chosen().prompt),
          ].join(" · "),
        }),
        step,
      );

    return { element, paint, step: (offset) => view.list.length && step(offset) };
  };

  /** A picture over the whole page; arrow keys go on, Esc or a click closes. */
  LT.enlarge = (current, step) => {
    const before = document.activeElement;
    const picture = h("img", { alt: "" });
    const words = h("div.lt-enlargedwords");
    const paint = () => {
      const index = current();
      picture.src = index.source;
      words.textContent = index.words;
    };
    const close = () => {
      cover.remove();
      if (before) before.focus();
    };
    const cover = h("div.lt-cover.lt-enlarged", { tabindex: 0, role: "dialog", "aria-label": t("Picture"), onclick: close },
      picture,
      words,
    );
    cover.addEventListener("keydown", (event) => {
      const offset = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
      event.stopPropagation();
      if (offset) {
        step(offset);
        paint();
      } else if (["Escape", "Enter", " "].includes(event.key)) close();
      event.preventDefault();
    });
    paint();
    LT.root().querySelector(".lt-app").append(cover);
    cover.focus();
  };
})();
