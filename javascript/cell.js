/* Step 5, right side: the selected cell, large; choosing its file and weight, and sending them to the host's own page. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  /* What the WebUI calls our samplers (lora_trainer/config/choices/samplers.py). */
  const SAMPLERS = {
    ddim: "DDIM", ddpm: "DDPM", pndm: "PLMS", lms: "LMS", heun: "Heun", euler: "Euler", euler_a: "Euler a",
    dpmsolver: "DPM++ 2M", "dpmsolver++": "DPM++ 2M", dpmsingle: "DPM++ 2M", dpm_2: "DPM2", dpm_2_a: "DPM2 a",
  };
  const same = (a, b) => Math.abs(a - b) < 1e-9;

  LT.makeCell = (view, { choose, again, drawWeights }) => {
    const element = h("div.lt-card.lt-detail");
    const shown = () =>
      view.chosen && view.grid && view.grid.cells.find((cell) => cell.epoch === view.chosen.epoch && same(cell.weight, view.chosen.weight));
    const fileOf = (epoch) => LT.gridFiles().find((file) => file.epoch === epoch);
    const nameOf = (epoch) => {
      const file = fileOf(epoch);
      return file ? LT.fileName(file.path).replace(/\.safetensors$/, "") : "";
    };

    const paint = () => {
      const cell = shown();
      if (!cell) {
        LT.fill(
          element,
          h("div.lt-empty", {},
            LT.icon("grid"),
            h("b", {}, t("Nothing is rendered yet")),
            h("span", {}, t("Each row will be a saved file, each column a weight: one picture each, at the same seed.")),
          ),
        );
        return;
      }
      const best = view.grid.best;
      const suggested = best && best.epoch === cell.epoch && same(best.weight, cell.weight);
      const used = view.info.chosen;
      const mine = used && used.epoch === cell.epoch && same(used.weight, cell.weight);
      const file = fileOf(cell.epoch);
      const grid = view.grid;
      const facts = [
        grid.seed !== undefined && t("seed {n}", { n: grid.seed }),
        grid.steps && t("{n} sampling steps", { n: grid.steps }),
        grid.width && LT.size(grid.width, grid.height),
      ]
        .filter(Boolean)
        .join(" · ");
      const big = h(
        "button.lt-bigpreview",
        {
          "aria-label": t("Enlarge"),
          onclick: () =>
            LT.enlarge(
              () => ({
                source: LT.gridImage((shown() || cell).image),
                words: `${title(shown() || cell)} · ${grid.prompt || cell.prompt || ""}`,
              }),
              (by) => LT.compareKey({ key: by > 0 ? "ArrowDown" : "ArrowUp" }),
            ),
        },
        h("img", { src: LT.gridImage(cell.image), alt: title(cell) }),
      );
      LT.fill(
        element,
        h("div.lt-detailhead", {},
          suggested && LT.icon("star", "lt-accent"),
          h("b.lt-bigname", {}, title(cell)),
          h("span.lt-muted", {}, [suggested && t("suggested"), mine && t("your choice")].filter(Boolean).join(" · ")),
          h("span.lt-gap"),
          file && h("span.lt-muted.lt-smaller", {}, `${LT.fileName(file.path)} · ${LT.megabytes(file.bytes / 1048576)}`),
        ),
        h("div.lt-detailbody", {},
          h("div.lt-detailpicture", {}, big),
          h("div.lt-scores", {}, scores(cell), why(cell, suggested), h("span.lt-gap"), beside(cell)),
        ),
        h("div.lt-row.lt-detailfoot", {},
          h("span.lt-nophone.lt-row", {},
            ["back", "next", "above", "below"].map((way) => LT.key(LT.icon(way))),
            h("span.lt-muted", {}, t("move in the grid")),
          ),
          h("span.lt-gap"),
          h("span.lt-muted", {}, facts),
        ),
        h("div.lt-answers.lt-detailacts", {},
          LT.button(mine ? t("This one is used") : t("Use this one"), { kind: "primary", key: "⏎", onclick: use }),
          handOver(cell),
          h("span.lt-gap"),
          LT.button(t("Make again"), {
            kind: "plain",
            onclick: () =>
              LT.ask(t("Make the pictures again?"), h("p", {}, t("Every cell is drawn anew, with another seed.")), [
                { label: t("Make again"), kind: "primary" },
                { label: t("Cancel") },
              ]).then((answer) => answer === 0 && again((view.grid.seed || 0) + 1)),
          }),
        ),
      );
    };
    const title = (cell) => t("Epoch {epoch} at {weight}", { epoch: cell.epoch, weight: LT.weightWords(cell.weight) });

    const scores = (cell) => {
      const bar = (name, value, below, look) =>
        h("div.lt-score", {},
          h("div.lt-row", {}, h("span", {}, name), h("span.lt-gap"), h("b", {}, value.toFixed(2))),
          h(`i.${look}`, {}, h("i", { style: { width: `${Math.max(0, Math.min(100, 100 * value))}%` } })),
          h("span", {}, below),
        );
      const scores = cell.scores;
      if (!scores) {
        return view.grid.best || view.grid.cells.some((one) => one.scores)
          ? h("div.lt-muted.lt-smaller", {}, t("Not measured: only a shortlist of the likeliest is."))
          : null;
      }
      const images = (LT.runData(view.id).plan || {}).images || 0;
      return [
        bar(t("Likeness"), scores.likeness, LT.tn(images, "how near to your picture", "how near to your {n} pictures"), "run"),
        bar(t("Keeps the base"), scores.keeping, t("other prompts stay the same"), "teal"),
        scores.copies && h("div.lt-warn.lt-smaller", {}, LT.icon("warning"), t("Copies a training picture.")),
      ];
    };
    const why = (cell, suggested) => {
      const best = view.grid.best;
      if (suggested) {
        return h("div.lt-why", {},
          h("b", {}, t("Why this one")),
          h("p", {}, best.words ? best.words.map(LT.messageText).join(" ") : LT.messageText(best.because)),
        );
      }
      if (best) {
        return h("div.lt-why", {},
          h("button.lt-link", { onclick: () => choose({ epoch: best.epoch, weight: best.weight }) },
            LT.icon("star"),
            " ",
            t("Suggested: epoch {epoch} at {weight}", { epoch: best.epoch, weight: LT.weightWords(best.weight) }),
          ),
        );
      }
      const reason = view.grid.because;
      return reason
        ? h("div.lt-why", {}, h("b", {}, t("No suggestion")), h("p", {}, LT.messageText(reason)), LT.diagnosisLines(view, drawWeights))
        : null;
    };
    const beside = (cell) => {
      const { nearest } = cell;
      const base = view.grid.base || (view.grid.cells.find((one) => one.epoch === cell.epoch && one.weight === 0) || {}).image;
      const small = (source, words) =>
        h("figure", {}, h("div.lt-picture", {}, h("img", { src: source, alt: words, loading: "lazy" })), h("figcaption", {}, words));
      return (
        (nearest || base) &&
        h("div.lt-beside", {},
          nearest && small(LT.thumbnail(nearest), t("nearest training picture")),
          base && small(LT.gridImage(base), t("same seed, no LoRA")),
        )
      );
    };

    const use = () => {
      const cell = shown();
      if (!cell) return false;
      LT.post(`runs/${encodeURIComponent(view.id)}/use`, { epoch: cell.epoch, weight: cell.weight }).then((response) => {
        view.info.chosen = { epoch: cell.epoch, weight: cell.weight };
        LT.emit("run", view.id);
        paint();
        LT.toast(
          t("Stored with {file}: preferred weight {weight}.", {
            file: LT.fileName(response.file || nameOf(cell.epoch)),
            weight: cell.weight,
          }),
          {
            kind: "good",
            action: { label: t("Copy {prompt}", { prompt: response.prompt || "" }), act: () => LT.copy(response.prompt || "") },
          },
        );
      }, LT.showError);
      return true;
    };

    /* ---- to the host's own page ---- */

    const prompt = () => (view.grid.prompt || (shown() || {}).prompt || "").trim();
    const withRecipe = () => (/<lora:[^>]*>/.test(prompt()) ? prompt() : `${prompt()} <lora:${LT.gridName()}-NUM:STRENGTH>`.trim());
    const filled = (cell) => withRecipe().replace(/<lora:[^>]*>/, `<lora:${nameOf(cell.epoch)}:${cell.weight}>`);
    const infotext = (text, extra = {}) => {
      const grid = view.grid;
      const pairs = {
        Steps: grid.steps || 20,
        Sampler: SAMPLERS[grid.sampler] || grid.sampler || "Euler a",
        "CFG scale": grid.cfg || 7,
        Seed: grid.seed === undefined ? 1 : grid.seed,
        Size: grid.width ? `${grid.width}x${grid.height}` : "512x512",
        ...(grid.clip_skip > 1 ? { "Clip skip": grid.clip_skip } : {}),
        ...extra,
      };
      const quoted = (value) => (/[,:\n]/.test(String(value)) ? JSON.stringify(String(value)) : value);
      const last = Object.entries(pairs).map(([key, value]) => `${key}: ${quoted(value)}`).join(", ");
      return [text, grid.negative && `Negative prompt: ${grid.negative}`, last].filter(Boolean).join("\n");
    };
    const epochNumber = (cell) => nameOf(cell.epoch).slice(LT.gridName().length + 1);
    const plot = () => {
      const grid = view.grid;
      const epochs = [...new Set(grid.cells.map((cell) => cell.epoch))].sort((a, b) => a - b);
      const weights = [...new Set(grid.cells.map((cell) => cell.weight))].sort((a, b) => a - b);
      const numbers = epochs.map((epoch) => epochNumber({ epoch }));
      return infotext(withRecipe().replace(/<lora:[^>]*>/, `<lora:${LT.gridName()}-NUM:STRENGTH>`), {
        Script: "X/Y/Z plot",
        "X Type": "[LoRA Trainer] Weight", "X Values": weights.join(","),
        "Y Type": "[LoRA Trainer] Epoch", "Y Values": numbers.join(","),
      });
    };
    const handOver = (cell) => {
      if (!LT.canPaste()) return LT.button(t("Copy prompt"), { icon: "copy", onclick: () => LT.copy(filled(cell)) });
      return [
        LT.button(t("Send to txt2img"), { icon: "next", onclick: () => LT.paste("txt2img", infotext(filled(cell))) }),
        LT.button(t("Open as X/Y/Z plot"), { icon: "grid", onclick: () => LT.paste("plot", plot()) }),
      ];
    };

    return { element, paint, use };
  };

  /* The host's own "paste" works on a text field and a button of Gradio: they are on the page, hidden. */
  const hidden = (which, part) => {
    const element = document.getElementById(`lora_trainer_${which}_${part}`);
    return element && (element.matches("textarea, button") ? element : element.querySelector("textarea, button"));
  };
  LT.canPaste = () => Boolean(hidden("txt2img", "text") && hidden("txt2img", "button"));
  LT.paste = (which, text) => {
    const field = hidden(which, "text");
    field.value = text;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    window.setTimeout(() => hidden(which, "button").click(), 100); // Gradio takes the text over in its next turn
  };
})();
