/* Step 5, left side: every saved file at every weight, one picture each. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const SECONDS = 6; // a picture, as long as none was drawn here
  const parts = {};
  const view = { id: null, info: null, grid: null, chosen: null, followed: true, problem: null, paces: [] };
  let shownFrame = "";

  LT.buildCompare = (panel) => {
    parts.empty = h("div.lt-empty.lt-nothing");
    parts.bar = h("div.lt-gridbar");
    parts.grid = h("div.lt-grid", { role: "grid", "aria-label": t("Epochs and weights") });
    parts.scroll = h("div.lt-scroll.lt-gridscroll", {}, parts.grid);
    const drawWeights = (weights) => {
      ask({ weights });
      shownFrame = ""; // the field shows them
      render();
    };
    parts.cell = LT.makeCell(view, { choose, again: (seed) => render(seed), drawWeights });
    parts.body = h("div.lt-comparebody", {}, parts.scroll, parts.cell.element);
    LT.fill(panel, parts.empty, parts.bar, parts.body);
    LT.on("show compare", load);
    LT.on("run", load);
    LT.on("status", ({ before }) => LT.state.step === "compare" && onStatus(before));
    paint();
  };

  const rendering = () => {
    const run = LT.activeRun();
    return run && run.kind === "grid" ? run : null;
  };
  const onStatus = async (before) => {
    const previous = before && before.run;
    const current = LT.cache.status.run;
    const changed = !previous || !current || previous.id !== current.id || previous.state !== current.state;
    if (rendering()) await readGrid();
    else if (changed) await load();
    else paint();
  };

  const load = async () => {
    if (LT.state.step !== "compare") return;
    const id = LT.shownId();
    if (id !== view.id) Object.assign(view, { id, info: null, grid: null, chosen: null, followed: true, problem: null });
    if (id) {
      try {
        [view.info] = await Promise.all([LT.get(`runs/${encodeURIComponent(id)}`), LT.readOn(id)]);
        await readGrid();
      } catch (error) {
        if (!(error instanceof LT.RequestError)) throw error;
        view.problem = error.problems[0];
      }
    }
    paint();
  };
  const readGrid = async () => {
    const id = view.id;
    if (!id) return;
    const grid = await LT.get(`runs/${encodeURIComponent(id)}/grid`).catch(() => null);
    if (id !== view.id || !grid) return;
    const before = view.grid ? view.grid.cells.length : 0;
    if (rendering() && grid.cells.length > before) view.paces.push([Date.now(), grid.cells.length]);
    view.grid = grid;
    if (view.followed && grid.cells.length) {
      view.chosen = grid.best
        ? { epoch: grid.best.epoch, weight: grid.best.weight }
        : view.chosen || pick(grid.cells[grid.cells.length - 1]);
    }
    paint();
  };
  const pick = (cell) => ({ epoch: cell.epoch, weight: cell.weight });

  /* ---- the grid's settings: weights, epochs, prompt ---- */

  const files = () => {
    const manifest = (view.info && view.info.manifest) || {};
    return [...new Map((manifest.files || []).filter((file) => !file.final).map((file) => [file.epoch, file])).values()].sort(
      (a, b) => a.epoch - b.epoch,
    );
  };
  LT.gridFiles = files;
  const nameOf = () => {
    const first = files()[0];
    return first ? LT.fileName(first.path).replace(/-(\d{6}|step\d+)\.safetensors$/, "").replace(/\.safetensors$/, "") : "";
  };
  LT.gridName = nameOf;
  const weightWords = (weight) => (Number.isInteger(weight) ? weight.toFixed(1) : String(weight));
  LT.weightWords = weightWords;
  const RECIPE = /<lora:[^>]*>/;
  const gridSettings = () => {
    const saved = LT.state.grid[view.id] || {};
    const config = LT.runData(view.id).config || {};
    const first = ((config.sample || {}).prompts || [])[0];
    const words = [(config.data || {}).trigger_word, (config.data || {}).class_tokens].filter(Boolean).join(" ");
    const plain = (first || words || "").replace(/\s--\w[\s\S]*$/, "").trim();
    const recipe = `<lora:${nameOf()}-NUM:STRENGTH>`;
    const done = view.grid && view.grid.prompt;
    return {
      weights:
        saved.weights ||
        (view.grid && view.grid.weights && view.grid.weights.length ? view.grid.weights.map(weightWords).join(" ") : "0.2 0.4 0.6 0.8 1.0"),
      epochs: saved.epochs || "all",
      prompt: saved.prompt || done || `${plain} ${recipe}`.trim(),
    };
  };
  const ask = (change) => {
    LT.state.grid[view.id] = { ...(LT.state.grid[view.id] || {}), ...change };
    LT.saveState();
    paintCount();
  };
  const weightsOf = (text) =>
    [
      ...new Set(
        String(text)
          .split(/[\s,;]+/)
          .filter(Boolean)
          .map(Number),
      ),
    ]
      .filter((weight) => isFinite(weight) && Math.abs(weight) <= 10)
      .sort((a, b) => a - b);
  const epochChoices = () => {
    const all = files().map((file) => file.epoch);
    const every = (n) => all.filter((epoch, index) => (all.length - 1 - index) % n === 0);
    const choices = [{ value: "all", label: t("all {n}", { n: all.length }), epochs: all }];
    if (all.length > 4) {
      choices.push(
        { value: "second", label: t("every second"), epochs: every(2) },
        { value: "last", label: t("the last 5"), epochs: all.slice(-5) },
      );
    }
    if (all.length > 12) choices.push({ value: "fifth", label: t("every fifth"), epochs: every(5) });
    return choices;
  };
  const request = () => {
    const settings = gridSettings();
    const choice = epochChoices().find((one) => one.value === settings.epochs) || epochChoices()[0];
    return { weights: weightsOf(settings.weights), epochs: choice.epochs, prompt: settings.prompt };
  };

  /** The prompt as the server stores it: with the <lora:...> tag in front where it has none. */
  const whole = (prompt) => (RECIPE.test(prompt) ? prompt : `<lora:${nameOf()}-NUM:STRENGTH> ${prompt}`).trim();

  const render = async (seed) => {
    const { weights, epochs, prompt } = request();
    view.problem = null;
    view.followed = true;
    view.paces = [];
    try {
      await LT.post("grid", { run: view.id, prompt, weights, epochs, ...(seed === undefined ? {} : { seed }) });
      await LT.poll();
      await readGrid();
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      view.problem = error.problems[0];
    }
    paint();
  };

  /* ---- painting ---- */

  const paint = () => {
    const run = LT.shownRun();
    const ready = Boolean(run && view.info && files().length);
    parts.empty.hidden = ready;
    parts.bar.hidden = parts.body.hidden = !ready;
    if (!ready) {
      const training = run && LT.activeRun() && LT.activeRun().id === run.id;
      const words = !run
        ? t("Choose a run that has saved files, or train one.")
        : view.problem
          ? view.problem.message
          : training
            ? t("The first file is not saved yet.")
            : view.info
              ? t("This run has saved no file.")
              : t("Looking…");
      LT.fill(
        parts.empty,
        LT.icon("grid"),
        h("b", {}, t("Which epoch at which weight?")),
        h("span", {}, words),
        !run && (LT.cache.runs || []).slice(0, 5).map((one) => LT.button(one.name, { onclick: () => LT.openRun(one.id) })),
      );
      shownFrame = "";
      return;
    }
    paintBar();
    paintGrid();
    parts.cell.paint();
  };

  const paintBar = () => {
    const frame = JSON.stringify([view.id, files().length, LT.language, view.grid && view.grid.prompt]);
    if (frame !== shownFrame) {
      shownFrame = frame;
      const settings = gridSettings();
      const weights = h("input.lt-input", {
        id: "lora_trainer_weights",
        type: "text",
        spellcheck: "false",
        autocomplete: "off",
        value: settings.weights,
        oninput: () => ask({ weights: weights.value }),
      });
      const epochs = LT.select("lora_trainer_epochs", epochChoices(), (value) => ask({ epochs: value }));
      epochs.paint(settings.epochs);
      parts.prompt = h("input.lt-input", {
        id: "lora_trainer_gridprompt",
        type: "text",
        spellcheck: "false",
        autocomplete: "off",
        value: settings.prompt,
        oninput: () => {
          ask({ prompt: parts.prompt.value });
          tint();
        },
      });
      parts.tint = h("div.lt-tint", { "aria-hidden": "true" });
      parts.prompt.addEventListener("scroll", () => (parts.tint.scrollLeft = parts.prompt.scrollLeft));
      parts.count = h("div.lt-gridcount");
      parts.wrong = h("div.lt-below");
      const field = (id, label, control) => h("div.lt-field", {}, h("div.lt-label", {}, h("label", { for: id }, label)), control);
      LT.fill(
        parts.bar,
        field("lora_trainer_weights", t("Weights"), weights),
        field("lora_trainer_epochs", t("Epochs"), epochs.element),
        field("lora_trainer_gridprompt", t("Prompt"), h("div.lt-tinted", {}, parts.prompt, parts.tint)),
        parts.count,
        parts.wrong,
      );
      tint();
    }
    paintCount();
  };
  /** Highlights the <lora:...> tag in the prompt. */
  const tint = () => {
    const text = parts.prompt.value;
    const match = RECIPE.exec(text);
    LT.fill(parts.tint, match ? [text.slice(0, match.index), h("b", {}, match[0]), text.slice(match.index + match[0].length)] : text);
  };

  const pace = () => {
    if (view.paces.length < 2) return null;
    const [[from, before], [to, after]] = [view.paces[0], view.paces[view.paces.length - 1]];
    return (to - from) / 1000 / Math.max(1, after - before);
  };
  const same = (a, b) => Math.abs(a - b) < 1e-9;
  const cellAt = (epoch, weight) => view.grid && view.grid.cells.find((cell) => cell.epoch === epoch && same(cell.weight, weight));

  const paintCount = () => {
    const { weights, epochs, prompt } = request();
    const total = weights.length * epochs.length;
    const live = rendering();
    const done =
      view.grid && view.grid.prompt !== undefined && whole(view.grid.prompt) === whole(prompt)
        ? epochs.reduce((sum, epoch) => sum + weights.filter((weight) => cellAt(epoch, weight)).length, 0)
        : 0;
    const missing = total - done;
    const measured = pace() || (view.grid && view.grid.seconds) || LT.state.pictureSeconds;
    if (measured && measured !== LT.state.pictureSeconds) {
      LT.state.pictureSeconds = measured;
      LT.saveState();
    }
    const each = measured || SECONDS;
    const about = (count) => `${t("about {time}", { time: LT.duration(count * each) })}${measured ? "" : ` (${t("estimate")})`}`;
    LT.fill(
      parts.wrong,
      view.problem && LT.problem(view.problem),
      !RECIPE.test(prompt) &&
        h("div.lt-hint", {}, LT.icon("warning"), t("Without <lora:…-NUM:STRENGTH> in the prompt the LoRA is put in front of it.")),
    );
    if (live) {
      const left = live.seconds_left ? t("{time} left", { time: LT.duration(live.seconds_left) }) : "";
      const count = { done: live.done, total: live.total };
      const words =
        live.state === "stopping"
          ? t("Stopping…")
          : LT.isRanking(live)
            ? `${t("Ranking the best…")} ${t("{done} of {total}", count)}`
            : t("{done} of {total} pictures", live.total ? count : { done, total });
      LT.fill(
        parts.count,
        h("span.lt-accent", {}, LT.icon("play"), words, left && h("span.lt-muted", {}, ` · ${left}`)),
        LT.button(t("Stop"), { icon: "stop", kind: "stop", disabled: live.state === "stopping", onclick: () => LT.command(live, "stop") }),
      );
      return;
    }
    const busy = LT.activeRun();
    const label = !done ? t("Render") : missing ? t("Render the rest") : t("Render again");
    const words = !done
      ? h("span.lt-muted", {}, `${LT.tn(total, "{n} picture", "{n} pictures")}, ${about(total)}`)
      : missing
        ? h("span.lt-warn", {},
            t("{done} of {total} pictures", { done, total }),
            h("span.lt-muted", {}, ` · ${about(missing)}`),
          )
        : h("span.lt-good", {}, LT.icon("check"), t("{done} of {total} pictures", { done, total }));
    LT.fill(
      parts.count,
      words,
      LT.button(label, {
        kind: missing ? "primary" : "",
        disabled: !total || Boolean(busy),
        title: busy ? t("{name} is being trained: pause or wait.", { name: busy.name }) : "",
        onclick: () => render(),
      }),
    );
  };

  /* ---- the grid ---- */

  LT.gridImage = (image) => LT.runFile(view.id, /^grid\//.test(image) ? image : `grid/${image}`);

  const axes = () => {
    const { weights, epochs } = request();
    const cells = view.grid ? view.grid.cells : [];
    const allWeights = rendering() && view.grid && view.grid.weights ? view.grid.weights : weights;
    const allEpochs = rendering() && view.grid && view.grid.epochs ? view.grid.epochs : epochs;
    return { weights: allWeights.length ? allWeights : [...new Set(cells.map((cell) => cell.weight))], epochs: allEpochs };
  };

  const paintGrid = () => {
    const { weights, epochs } = axes();
    const losses = validation();
    const validationLosses = [...losses.values()];
    const [low, high] = [Math.min(...validationLosses), Math.max(...validationLosses)];
    const best = view.grid && view.grid.best;
    const chosen = view.chosen || {};
    const used = view.info.chosen;
    const isBest = (epoch, weight) => best && best.epoch === epoch && same(best.weight, weight);
    const next = rendering() && nextCell(epochs, weights);
    parts.grid.style.setProperty("--weights", weights.length);
    parts.grid.style.setProperty("--cell", epochs.length <= 6 && weights.length <= 6 ? "84px" : "54px");
    parts.grid.classList.toggle("lt-noloss", !validationLosses.length);
    const head = [
      h("span.lt-axis", {}, t("weight")),
      weights.map((weight) => h(`span.lt-axis${same(weight, chosen.weight) ? ".on" : ""}`, {}, weightWords(weight))),
      validationLosses.length > 0 && h("span.lt-axis.lt-lossaxis", {}, t("validation loss")),
    ];
    const rows = epochs.map((epoch) => [
      h(`span.lt-axis${epoch === chosen.epoch ? ".on" : ""}`, {}, t("epoch {n}", { n: epoch })),
      weights.map((weight) => {
        const cell = cellAt(epoch, weight);
        const on = epoch === chosen.epoch && same(weight, chosen.weight);
        const waits = next && next.epoch === epoch && same(next.weight, weight);
        const mark = used && used.epoch === epoch && same(used.weight, weight);
        return h(
          `button.lt-cell${cell ? "" : ".lt-none"}${waits ? ".lt-drawing" : ""}`,
          {
            role: "gridcell",
            tabindex: on ? 0 : -1,
            "aria-selected": String(Boolean(on)),
            "aria-label": t("epoch {epoch} at {weight}", { epoch, weight }),
            disabled: !cell,
            onclick: () => choose({ epoch, weight }),
          },
          cell && h("img", { src: LT.gridImage(cell.image), alt: "", loading: "lazy" }),
          isBest(epoch, weight) && h("span.lt-beststar", { title: t("suggested") }, LT.icon("star")),
          mark && h("span.lt-usedmark", { title: t("your choice") }, LT.icon("check")),
        );
      }),
      validationLosses.length > 0 && lossCell(losses.get(epoch), low, high),
    ]);
    LT.fill(parts.grid, head, rows);
  };
  const lossCell = (loss, low, high) => {
    if (loss === undefined) return h("span");
    const lowest = loss === low;
    const share = high > low ? (loss - low) / (high - low) : 0;
    return h(`span.lt-losscell${lowest ? ".on" : ""}`, {},
      h("b", {}, LT.loss(loss)),
      h("i", {}, h("i", { style: { left: `${10 + 80 * share}%` } })),
      lowest && h("em", {}, t("lowest")),
    );
  };
  const validation = () => {
    const losses = new Map();
    const saved = new Map(files().map((file) => [file.epoch, file]));
    LT.runData(view.id).validations.forEach((one) => { if (one.step > 0) losses.set(one.epoch, one.loss); });
    saved.forEach((file, epoch) => { if (typeof file.validation === "number") losses.set(epoch, file.validation); });
    [...losses.keys()].forEach((epoch) => !saved.has(epoch) && losses.delete(epoch));
    return losses;
  };
  LT.gridValidation = validation;
  const nextCell = (epochs, weights) => {
    for (const epoch of epochs) for (const weight of weights) if (!cellAt(epoch, weight)) return { epoch, weight };
    return null;
  };

  const choose = (cell) => {
    view.chosen = cell;
    view.followed = false;
    paintGrid();
    parts.cell.paint();
    const on = parts.grid.querySelector('[aria-selected="true"]');
    if (on) on.focus({ preventScroll: false });
  };

  /** Keys of this step: arrows move in the grid, Enter uses the shown file. */
  LT.compareKey = (event) => {
    if (!view.chosen || parts.body.hidden) return false;
    if (event.key === "Enter") {
      return document.activeElement.tagName !== "BUTTON" || document.activeElement.closest(".lt-grid") ? parts.cell.use() : false;
    }
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!move) return false;
    const { weights, epochs } = axes();
    const row = Math.max(0, Math.min(epochs.length - 1, epochs.indexOf(view.chosen.epoch) + move[0]));
    const column = Math.max(0, Math.min(weights.length - 1, weights.findIndex((weight) => same(weight, view.chosen.weight)) + move[1]));
    if (cellAt(epochs[row], weights[column])) choose({ epoch: epochs[row], weight: weights[column] });
    return true;
  };
})();
