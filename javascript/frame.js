/* What every step shows: the run's pill, the model, the memory, the five steps. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const parts = {};

  /** Each state of a run: an icon and a colour (class), never colour alone. */
  LT.STATES = {
    idle: { sign: "idle", look: "calm" },
    planning: { sign: "search", look: "busy" },
    caching: { sign: "copy", look: "busy" },
    training: { sign: "play", look: "busy" },
    paused: { sign: "pause", look: "wait" },
    sampling: { sign: "picture", look: "busy" },
    saving: { sign: "save", look: "busy" },
    stopping: { sign: "stop", look: "wait" },
    finished: { sign: "check", look: "good" },
    stopped: { sign: "stop", look: "calm" },
    failed: { sign: "cross", look: "bad" },
    interrupted: { sign: "cross", look: "bad" },
    damaged: { sign: "cross", look: "bad" },
  };
  LT.stateWord = (state) =>
    ({
      idle: t("idle"),
      planning: t("planning"),
      caching: t("caching"),
      training: t("training"),
      paused: t("paused"),
      sampling: t("sampling"),
      saving: t("saving"),
      stopping: t("stopping"),
      finished: t("finished"),
      stopped: t("stopped"),
      failed: t("failed"),
      interrupted: t("interrupted"),
      damaged: t("damaged"),
    })[state] || state;
  const stepName = (step) =>
    ({ pictures: t("Pictures"), captions: t("Captions"), settings: t("Settings"), train: t("Train"), compare: t("Compare") })[step];

  const LANGUAGES = { en: "English", zh_CN: "简体中文" };

  LT.buildFrame = (root) => {
    parts.pill = h("button.lt-pill.calm", { "aria-live": "polite", onclick: openActiveRun });
    parts.model = h("button.lt-model", { "aria-expanded": "false", onclick: explainModel });
    parts.memory = h("div.lt-memory");
    parts.windows = h("div.lt-windows");
    parts.help = h("button.lt-round", { "aria-label": t("Help"), "aria-expanded": "false", onclick: () => LT.openHelp(parts.help) }, "?");
    parts.tools = h(
      "button.lt-named",
      { "aria-label": t("Tools for trained files"), title: t("Tools for trained files"), onclick: () => LT.openTools() },
      LT.icon("wrench"),
      t("Tools"),
    );
    const other = LT.language === "en" ? "zh_CN" : "en";
    parts.language = h(
      "button.lt-named.lt-language",
      { lang: other === "en" ? "en" : "zh-CN", title: "Language · 语言", onclick: () => LT.useLanguage(other) },
      LANGUAGES[other],
    );
    parts.steps = {};
    parts.panels = {};
    const stepper = h("div.lt-steps", { role: "tablist", "aria-label": t("Steps") });
    LT.STEPS.forEach((step, index) => {
      if (index) stepper.append(h("span.lt-line"));
      parts.steps[step] = h("button.lt-step", { role: "tab", id: `lora_trainer_step_${step}`, onclick: () => LT.goToStep(step) });
      stepper.append(parts.steps[step]);
      parts.panels[step] = h(`section.lt-panelstep.lt-${step}`, {
        role: "tabpanel",
        "aria-labelledby": `lora_trainer_step_${step}`,
        id: `lora_trainer_${step}`,
      });
    });
    parts.run = h("button.lt-runbutton", { "aria-expanded": "false", onclick: () => LT.openRuns(parts.run) });
    const right = [parts.memory, parts.windows, parts.language, parts.tools, parts.help];
    const header = h("div.lt-header", {}, parts.pill, parts.model, h("span.lt-gap"), right);
    parts.silent = h("div.lt-silent", { role: "status" });
    LT.fill(
      root,
      h("div.lt-app", { lang: LT.language === "zh_CN" ? "zh-CN" : "en" },
        header,
        h("div.lt-stepper", {}, stepper, h("span.lt-gap"), parts.run),
        parts.silent,
        LT.buildBroken(),
        h("div.lt-main", {}, Object.values(parts.panels)),
      ),
    );
    LT.panels = parts.panels;
    LT.on("step", showStep);
    LT.on("status", paintHeader);
    LT.on("data", paintHeader);
    ["status", "pictures", "captions", "plan", "looked", "run", "runs"].forEach((name) => LT.on(name, LT.paintSteps));
    LT.on("silent", paintSilent);
    LT.on("status", paintSilent);
    showStep();
    paintHeader();
    paintSilent();
    LT.paintSteps();
  };

  const showStep = () => {
    LT.STEPS.forEach((step) => {
      parts.panels[step].hidden = step !== LT.state.step;
      parts.steps[step].setAttribute("aria-selected", String(step === LT.state.step));
      parts.steps[step].tabIndex = step === LT.state.step ? 0 : -1;
    });
    LT.closePanel();
    if (parts.panels[LT.state.step].offsetParent) parts.steps[LT.state.step].scrollIntoView({ block: "nearest", inline: "nearest" });
    LT.paintSteps();
    LT.emit(`show ${LT.state.step}`);
  };

  const paintSilent = () => {
    const words = LT.refusal() || (LT.isOffline() && t("The server does not answer; a run goes on without this page. Trying again…"));
    LT.fill(parts.silent, words && [LT.icon("warning"), words]);
    parts.silent.hidden = !words;
  };

  /* ---- the pill ---- */

  const share = (run) => (run.total_steps ? LT.stepOf(run) / run.total_steps : 0);
  const left = (run) => (run.seconds_left ? t("{time} left", { time: LT.duration(run.seconds_left) }) : "");

  const elapsed = (run) => {
    const data = LT.runData(run.id);
    return data.ended && data.started ? LT.duration(data.ended - data.started) : run.name;
  };
  const memoryDevice = () => ((LT.cache.status || {}).memory || {}).device;
  /** Whether a pause has given a graphics card back: on the CPU there is none. */
  const isGpuFreed = (run) => run.state === "paused" && LT.onGpu(run.device || memoryDevice());
  /** Whether a grid's pictures are all drawn, and are being compared. */
  LT.isRanking = (run) => String(run.phase || "").toLowerCase() === "ranking";
  /** What the pill says of a run: [strong words, words behind the dot]; on a phone "training 58 %" is "58 %". */
  LT.pillWords = (run) => {
    if (!run || run.state === "idle") return [t("idle"), ""];
    if (run.kind === "grid" && run.state === "finished") return [t("grid finished"), ""];
    if (run.kind === "grid" && LT.activeRun()) {
      const word = LT.isRanking(run) ? t("ranking") : t("rendering");
      return [word, [run.total && t("{done} of {total}", { done: run.done, total: run.total }), left(run)].filter(Boolean).join(" · ")];
    }
    if (run.kind === "rate") {
      return LT.activeRun() ? [t("looking for a rate"), run.total_steps ? LT.percent(share(run)) : ""] : [t("idle"), ""];
    }
    const word = LT.stateWord(run.state);
    if (run.state === "training") return [`${word} ${LT.percent(share(run))}`, left(run), LT.percent(share(run))];
    if (run.state === "caching") return [word, run.total ? t("{done} of {total}", { done: run.done, total: run.total }) : ""];
    if (["sampling", "saving", "paused", "stopping"].includes(run.state)) {
      return [run.total_steps ? `${word} ${LT.percent(share(run))}` : word, isGpuFreed(run) ? t("GPU is free") : ""];
    }
    if (run.state === "finished") return [word, elapsed(run)];
    if (run.state === "failed") return [t("failed at {share}", { share: LT.percent(share(run)) }), LT.shortProblem(run)];
    return [word, run.name];
  };

  const paintHeader = () => {
    const status = LT.cache.status;
    const run = status && status.run;
    const state = (run && run.state) || "idle";
    const look = LT.STATES[state] || LT.STATES.idle;
    const [strong, behind, short] = LT.pillWords(run);
    parts.pill.className = `lt-pill ${look.look}`;
    parts.pill.title = run ? `${run.name} · ${strong} ${behind}` : t("Nothing is being trained.");
    LT.fill(
      parts.pill,
      LT.icon(look.sign),
      short ? h("b", {}, h("span.lt-nophone", {}, strong), h("span.lt-phone", {}, short)) : h("b", {}, strong),
      behind && h("span", {}, "· ", behind),
    );
    parts.pill.dataset.state = state;
    paintModel(status && status.model);
    paintMemory(status, run);
    const windows = (status && status.windows) || 1;
    parts.windows.hidden = windows < 2;
    parts.windows.title = t("{n} browser windows have this tab open. All of them show the same run; each keeps its own form.", {
      n: windows,
    });
    LT.fill(parts.windows, LT.icon("windows"), t("{n} windows", { n: windows }));
  };

  /** Opens the step that shows the active run. */
  LT.goTo = (run) => {
    if (run && run.kind === "train") LT.openRun(run.id);
    LT.goToStep((run && { grid: "compare", rate: "settings" }[run.kind]) || "train");
  };
  const openActiveRun = () => {
    const run = LT.cache.status && LT.cache.status.run;
    LT.goTo(run);
  };

  /* ---- the model ---- */

  const FAMILIES = { sd1: "SD 1.x", sd2: "SD 2.x", sdxl: "SDXL" };
  LT.familyName = (family) => FAMILIES[family] || family || "";
  const predictionName = (prediction) =>
    ({
      epsilon: t("the noise, as most models do (epsilon)"),
      v: t("v-prediction"),
      v_prediction: t("v-prediction"),
      flow: t("rectified flow"),
    })[prediction] ||
    prediction ||
    "";

  /** Family, a prediction type that is not the usual one, and noise schedule of a model, as the server reports them. */
  LT.modelFacts = (model) =>
    [
      LT.familyName(model.family),
      model.prediction !== "epsilon" && predictionName(model.prediction),
      model.zero_terminal_snr && t("zero terminal SNR"),
    ].filter(Boolean);

  const paintModel = (model) => {
    parts.model.hidden = !model;
    if (!model) return;
    const bad = model.trainable === false;
    parts.model.classList.toggle("bad", bad);
    const title = String(model.title || "").replace(/\.(safetensors|ckpt)\b.*$/, "");
    const facts = LT.modelFacts(model);
    LT.fill(
      parts.model,
      bad && LT.icon("cross"),
      h("b", {}, title || t("no checkpoint loaded")),
      facts.map((fact) => [h("i", {}, "·"), h("span", {}, fact)]),
      LT.icon("down"),
    );
  };

  const explainModel = () => {
    const model = LT.cache.status.model;
    const rows = [
      [t("File"), model.path],
      [t("Family"), LT.familyName(model.family)],
      [t("Prediction type"), predictionName(model.prediction)],
      [t("Noise schedule"), model.zero_terminal_snr && t("zero terminal SNR")],
      [t("Native size"), model.native_size && LT.size(model.native_size, model.native_size)],
      [t("Clip skip"), model.clip_skip],
      [t("How it was found"), model.because],
    ].filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
    const reason =
      model.reason &&
      h(
        model.trainable === false ? "div.lt-problem" : "div.lt-muted",
        {},
        model.trainable === false && LT.icon("cross"),
        h("span", {}, model.reason),
      );
    LT.panel(
      parts.model,
      h("div.lt-facts", {},
        reason,
        rows.map(([name, value]) => h("div.lt-fact", {}, h("span", {}, name), h("span", {}, value))),
      ),
      { wide: true },
    );
  };

  /* ---- memory ---- */

  const paintMemory = (status, run) => {
    const memory = status && status.memory;
    parts.memory.hidden = !memory || !memory.total_mb;
    if (parts.memory.hidden) return;
    const cpu = !LT.onGpu(memory.device);
    const used = memory.total_mb - memory.free_mb;
    const active = LT.activeRun();
    const own =
      active && run.kind !== "grid" && run.state !== "paused" ? Math.min(used, run.vram_mb || used - (memory.host_mb || used)) : 0;
    const width = (mb) => `${Math.max(0, (100 * mb) / memory.total_mb)}%`;
    const label = cpu ? t("Memory") : t("GPU memory");
    const words = t("{used} of {total} GB", { used: LT.gigabytes(used), total: LT.gigabytes(memory.total_mb) });
    parts.memory.title = own
      ? t("{label}: run {own}, everything else {host}, free {free}", {
          label,
          own: LT.megabytes(own),
          host: LT.megabytes(used - own),
          free: LT.megabytes(memory.free_mb),
        })
      : t("{label}: in use {used}, free {free}", { label, used: LT.megabytes(used), free: LT.megabytes(memory.free_mb) });
    LT.fill(
      parts.memory,
      LT.icon("chip"),
      h("span.lt-muted", {}, label),
      h("span.lt-bar", {}, h("i.host", { style: { width: width(used - own) } }), own > 0 && h("i.run", { style: { width: width(own) } })),
      h("span.lt-number", {}, words),
    );
  };

  /* ---- the steps ---- */

  const badge = (step) => {
    const { pictures, plan } = LT.cache;
    if (step === "pictures" && pictures) {
      const waiting = LT.picturesToReview().length;
      return waiting
        ? h("span.lt-badge", { title: LT.tn(waiting, "{n} picture needs a look", "{n} pictures need a look") },
            LT.icon("dot"),
            LT.count(waiting),
          )
        : pictures.counts.used > 0 && wasVisited(step) && done();
    }
    if (step === "captions" && pictures && pictures.counts.used) {
      return LT.captionsMissing()
        ? h("span.lt-badge", { title: t("No captions, no trigger word, no class word.") }, LT.icon("dot"), "1")
        : wasVisited(step) && done();
    }
    if (step === "settings" && plan) {
      const wrong = LT.problems().length;
      return wrong ? h("span.lt-badge", {}, LT.icon("dot"), LT.count(wrong)) : wasVisited(step) && done();
    }
    if (step === "train") {
      const run = LT.shownRun();
      const look = run && LT.STATES[run.state];
      return look && run.state !== "idle" && LT.icon(look.sign, `lt-${look.look}`);
    }
    return null;
  };
  const done = () => LT.icon("check", "lt-good");
  const wasVisited = (step) => LT.state.visited[step] === LT.source();
  const noteVisit = () => {
    if (!LT.source() || wasVisited(LT.state.step)) return;
    LT.state.visited[LT.state.step] = LT.source();
    LT.saveState();
  };

  LT.paintSteps = () => {
    noteVisit();
    LT.STEPS.forEach((step, index) => {
      const label = `${index + 1} ${stepName(step)}`;
      parts.steps[step].setAttribute("aria-label", label);
      LT.fill(parts.steps[step], h("span.lt-digit", {}, index + 1), h("span.lt-stepname", {}, stepName(step)), badge(step));
    });
    const run = LT.shownRun();
    const look = run && LT.STATES[run.state];
    const name = run ? run.name : t("new: {name}", { name: LT.resultName() || t("unnamed") });
    LT.fill(parts.run, look && LT.icon(look.sign, `lt-${look.look}`), h("span.lt-muted", {}, t("Run")), h("b", {}, name), LT.icon("down"));
  };
})();
