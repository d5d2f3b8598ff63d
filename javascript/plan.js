/* Step 3, right side: what will happen, live, by the server's own plan; and the one button that starts it. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const parts = {};
  let show = "with"; // with the ticked changes, or as it is now
  let fix = null; // what makes it fit: {changes, label, saves}
  let checking = false;
  let starting = false;
  let latestPlan = null;
  let latestFix = null;

  const check = (changes) => LT.post("check", { config: LT.config(changes) });

  /** Takes the model's native size from a plan; returns whether the form's training size has changed. */
  const takeModelSize = (model) => {
    const before = LT.value("data.resolution");
    LT.cache.modelSize = (model && model.native_size) || LT.cache.modelSize;
    return LT.value("data.resolution") !== before;
  };

  /** Asks the server for the plan of the form (and of the form with the ticked suggestions). */
  LT.readPlan = async () => {
    if (!LT.source()) {
      LT.cache.plan = LT.cache.planned = null;
      LT.emit("plan");
      return;
    }
    checking = true;
    latestPlan = latestPlan || LT.latestOnly((changes) => Promise.all([check({}), changes ? check(changes) : null]));
    try {
      const response = await latestPlan(LT.suggestionsOpen() && LT.tickedCount() ? LT.tickedChanges() : null);
      if (!response) return;
      [LT.cache.plan, LT.cache.planned] = response;
      if (takeModelSize(LT.cache.plan.model)) return LT.emit("form", ["data.resolution"]); // planned anew with it
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      LT.cache.plan = { problems: error.problems };
      LT.cache.planned = null;
    }
    checking = false;
    LT.emit("plan");
    findFix();
  };

  /** Whether a plan may be another now: a run began or ended, here or in another window, or the host has another model. */
  const isReplanned = (before, now) => {
    const run = (status) => status && status.run && [status.run.id, Boolean(status.run.outcome)];
    const key = (status) => JSON.stringify([run(status), status && status.model && [status.model.title, status.model.trainable]]);
    return Boolean(before && before !== now && key(before) !== key(now));
  };

  LT.buildPlan = () => {
    parts.numbers = h("div");
    parts.schedule = LT.makeSchedule();
    parts.card = h("div.lt-card.lt-plan", {}, parts.numbers, parts.schedule.element);
    parts.notes = h("div.lt-notes");
    return [parts.card, parts.notes];
  };
  LT.buildStart = () => {
    parts.start = h("div.lt-start");
    const readSoon = LT.debounce(LT.readPlan, 350);
    LT.on("form", readSoon);
    LT.on("suggestions", readSoon);
    LT.on("subject", readSoon);
    ["show settings", "seen", "runs", "edited"].forEach((name) => LT.on(name, readSoon)); // names are taken, times measured meanwhile
    LT.on("status", ({ before }) => isReplanned(before, LT.cache.status) && readSoon());
    ["plan", "suggestions", "status", "pictures", "captions"].forEach((name) => LT.on(name, paint));
    paint();
    return parts.start;
  };

  const paint = () => {
    const plan = LT.cache.plan;
    const planned = LT.cache.planned;
    const shown = planned && show === "with" ? planned : plan;
    parts.card.hidden = !shown || shown.total_steps === undefined;
    if (!parts.card.hidden) paintPlan(shown, planned && show === "with" ? plan : null, Boolean(planned));
    paintNotes();
    paintStart();
  };

  const about = (plan) => (plan.seconds ? t("about {time}", { time: LT.duration(plan.seconds) }) : "–");
  /** Whether the last epoch is cut short, so that epochs × steps is not the number of steps. */
  LT.endsEarly = (plan) => Boolean(plan.epochs && plan.steps_per_epoch && plan.epochs * plan.steps_per_epoch !== plan.total_steps);
  const epochWords = (plan) => `${LT.count(plan.epochs)} × ${LT.count(plan.steps_per_epoch)}`;

  const paintPlan = (plan, current, both) => {
    const tile = (name, value, below) =>
      h("div.lt-happen", {}, h("span", {}, name), h("b", {}, value), h("span", {}, below.filter(Boolean).join(" · ")));
    const currentWords = (value) => current && current.total_steps !== undefined && t("now {value}", { value });
    const choices = [
      { value: "with", label: LT.tn(LT.tickedCount(), "with the change", "with the {n} changes") },
      { value: "now", label: t("as it is now") },
    ];
    LT.fill(
      parts.numbers,
      h("div.lt-cardhead", {},
        h("div.lt-title", {}, t("What will happen")),
        h("span.lt-gap"),
        both &&
          LT.segments(
            choices,
            show,
            (value) => {
              show = value;
              paint();
            },
            { label: t("What will happen"), kind: "lt-smallsegments" },
          ),
      ),
      h("div.lt-happens", {},
        tile(t("Steps"), LT.count(plan.total_steps), [currentWords(current && LT.count(current.total_steps))]),
        tile(t("Epochs"), epochWords(plan), [
          LT.endsEarly(plan) && t("the last one ends early"),
          currentWords(current && current.epochs && epochWords(current)),
        ]),
        tile(t("Time"), about(plan), [
          plan.seconds_measured || plan.measured ? t("measured") : t("estimate"),
          currentWords(current && LT.duration(current.seconds)),
        ]),
        tile(t("Disk"), LT.megabytes(plan.disk_mb || 0), [
          LT.tn(plan.files || 0, "{n} file", "{n} files"),
          plan.network && t("{size} each", { size: LT.megabytes(plan.network.file_bytes / 2 ** 20) }),
          currentWords(current && LT.megabytes(current.disk_mb || 0)),
        ]),
      ),
      plan.memory && memory(plan.memory),
    );
    parts.schedule.paint(plan);
  };

  const COLOURED_PARTS = ["model", "network", "activations", "workspace", "optimizer"]; // each has its colour, wherever it stands
  const colourClass = (name) => `part${COLOURED_PARTS.includes(name) ? COLOURED_PARTS.indexOf(name) : COLOURED_PARTS.length - 1}`;
  /** The user's limit on stored activations, if there is one. */
  const limitWords = (name) => {
    const limit =
      name === "activations" && LT.relevant("memory.checkpointing_budget_gb") && Number(LT.value("memory.checkpointing_budget_gb"));
    return limit > 0 ? ` ${t("(at most {n} GB)", { n: limit })}` : "";
  };
  const partName = (name) =>
    ({
      model: t("model"),
      network: t("network"),
      optimizer: t("optimizer"),
      activations: t("activations"),
      workspace: t("workspace"),
      latents: t("pictures"),
      cache: t("pictures"),
      gradients: t("gradients"),
      validation: t("validation"),
    })[name] || name;

  const phaseName = (name) =>
    ({
      load: t("loading the model"),
      captions: t("encoding captions"),
      pictures: t("encoding pictures"),
      step: t("a training step"),
      preview: t("drawing a preview"),
      save: t("saving a file"),
    })[name] || name;

  const memory = (plan) => {
    const split = Object.entries(plan.parts || {}).filter(([, mb]) => mb > 0);
    const need = memoryNeeded({ memory: plan });
    const machine = LT.cache.status && LT.cache.status.memory;
    const total = Math.max(machine ? machine.total_mb : 0, plan.free_mb || 0, need * 1.02);
    const width = (mb) => `${(100 * mb) / total}%`;
    const short = (mb) => (need < 1024 ? LT.megabytes(mb) : LT.gigabytes(mb));
    const free = plan.free_mb || 0;
    const fits = plan.fits !== false;
    const used = free ? t("{used} of {total}", { used: short(need), total: LT.megabytes(free) }) : LT.megabytes(need);
    const occupied = machine ? machine.total_mb - free : 0;
    return h("div.lt-memoryplan", {},
      h("div.lt-row", {},
        h("span", {}, LT.memoryName(machine && LT.onGpu(machine.device)), " ", h("b", {}, used)),
        fits ? h("b.lt-good", {}, LT.icon("check"), t("fits")) : h("b.lt-bad", {}, LT.icon("cross"), t("will not fit")),
        h("span.lt-gap"),
        h("span.lt-muted", {}, t("peak, estimate")),
      ),
      h("div.lt-parts", {},
        split.map(([name, mb]) =>
          h(`i.${colourClass(name)}`, { style: { width: width(mb) }, title: `${partName(name)} ${LT.megabytes(mb)}` }),
        ),
        total > free && free > 0 && h("i.kept", { style: { left: width(free), width: width(total - free) } }),
        free > 0 && h("i.line", { style: { left: width(free) } }),
      ),
      h("div.lt-row.lt-partnames", {},
        split.map(([name, mb]) => h("span", {}, h(`i.${colourClass(name)}`), `${partName(name)} ${short(mb)}${limitWords(name)}`)),
        h("span.lt-gap"),
        free > 0 &&
          h("span", {},
            occupied > 50
              ? t("{free} free · {kept} kept by host and desktop", { free: LT.megabytes(free), kept: LT.megabytes(occupied) })
              : t("{free} free", { free: LT.megabytes(free) }),
          ),
      ),
      h("div.lt-muted", {},
        Object.entries(plan.phases || {}).map(([name, mb]) => `${phaseName(name)} ${short(mb)}`).join(" · "),
      ),
      !fits && fixHint(need),
    );
  };

  /* ---- when it does not fit: the first change that makes it fit, tried on the server ---- */

  const memoryNeeded = (plan) => Object.values((plan && plan.memory && plan.memory.parts) || {}).reduce((sum, mb) => sum + mb, 0);
  const findFix = async () => {
    fix = null;
    const plan = LT.cache.plan;
    if (!plan || !plan.memory || plan.memory.fits !== false) return;
    const fixes = [];
    if (!LT.value("memory.gradient_checkpointing")) {
      fixes.push({ label: t("Turn on gradient checkpointing"), changes: { "memory.gradient_checkpointing": true } });
    } else if (LT.value("memory.checkpointing_budget_gb") > 0) {
      fixes.push({ label: t("Recompute everything that can be"), changes: { "memory.checkpointing_budget_gb": 0 } });
    }
    const batch = LT.value("data.batch_size");
    const pieces = Math.ceil((LT.value("memory.pictures_at_once") || batch) / 2);
    const checkpointingOptions = { "memory.gradient_checkpointing": true, "memory.checkpointing_budget_gb": 0 };
    if (pieces < (LT.value("memory.pictures_at_once") || batch)) {
      fixes.push({
        label: LT.tn(pieces, "Calculate {n} picture at a time", "Calculate {n} pictures at a time"),
        changes: { ...checkpointingOptions, "memory.pictures_at_once": pieces },
      });
    }
    if (batch > 1) {
      fixes.push({
        label: LT.tn(Math.floor(batch / 2), "{n} picture per step", "{n} pictures per step"),
        changes: { "data.batch_size": Math.floor(batch / 2), "memory.gradient_checkpointing": true },
      });
    }
    const size = LT.value("data.resolution");
    if (typeof size === "number" && size > 256) {
      fixes.push({
        label: t("Training size {n}", { n: Math.round((size * 0.75) / 64) * 64 }),
        changes: { "data.resolution": Math.round((size * 0.75) / 64) * 64, "memory.gradient_checkpointing": true, "data.batch_size": 1 },
      });
    }
    latestFix =
      latestFix ||
      LT.latestOnly(async (all) => {
        for (const one of all) {
          const candidate = await check(one.changes).catch(() => null);
          if (candidate && candidate.memory && candidate.memory.fits) {
            return { ...one, saves: memoryNeeded(plan) - memoryNeeded(candidate) };
          }
        }
        return null;
      });
    fix = await latestFix(fixes);
    if (fix) paint();
  };
  const fixHint = () =>
    h("div.lt-wayout", {},
      LT.icon("warning"),
      h("span", {},
        fix
          ? t("{what}: then it fits ({saves}).", { what: fix.label, saves: `−${LT.megabytes(fix.saves)}` })
          : t("A smaller training size or fewer pictures per step need less."),
      ),
      fix && LT.button(t("Do it"), { kind: "small", onclick: () => LT.set(fix.changes) }),
    );

  /* ---- notes before the start ---- */

  const paintNotes = () => {
    const pictures = LT.cache.pictures;
    const notes = LT.warnings().map((warning) =>
      note(
        `${warning.message} ${warning.fix || ""}`.trim(),
        LT.options.has(warning.path) && [t("Show it"), () => LT.showOption(warning.path)],
      ),
    );
    if (pictures && pictures.counts.without > 0 && pictures.counts.captions > 0) {
      const words = [LT.value("data.trigger_word"), LT.classWords()].filter(Boolean).join(", ");
      const values = { without: LT.count(pictures.counts.without), used: LT.count(pictures.counts.used), words };
      notes.push(
        note(
          words
            ? t("{without} of {used} pictures have no caption; they will be read as “{words}”.", values)
            : t("{without} of {used} pictures have no caption.", values),
          [t("Show them"), () => LT.goToStep("captions")],
        ),
      );
    }
    LT.fill(parts.notes, notes);
  };
  const note = (text, action) =>
    h("div.lt-notice", {},
      LT.icon("warning"),
      h("span", {}, text),
      h("span.lt-gap"),
      action && LT.button(action[0], { kind: "small", onclick: action[1] }),
    );

  /** What prevents a start: {text, label, go}, or null. */
  const blocked = () => {
    const active = LT.activeRun();
    if (active && LT.isLrSearch(active)) {
      return {
        text: t("A learning rate is being looked for: wait for it, or stop it."),
        label: t("Stop"),
        go: () => LT.command(active, "stop-discard"),
      };
    }
    if (active) {
      return {
        text:
          active.kind === "grid"
            ? t("A grid is being rendered: wait for it, or stop it.")
            : t("{name} is being trained: wait for it, or stop it.", { name: active.name }),
        label: t("Show it"),
        go: () => LT.goTo(active),
      };
    }
    const model = LT.cache.status && LT.cache.status.model;
    if (!LT.source()) {
      return { text: t("Choose the folder of your pictures first."), label: t("Pictures"), go: () => LT.goToStep("pictures") };
    }
    const wrong = (LT.cache.picturesProblems || [])[0];
    if (wrong && LT.source()) {
      return { text: wrong.message, label: t("Show it"), go: () => LT.showOption(wrong.path || "data.train_data_dir") };
    }
    if (LT.captionsMissing()) {
      return {
        text: t("No picture has a caption: write a trigger word or a class word."),
        label: t("Write one"),
        go: () => LT.showOption("data.trigger_word"),
      };
    }
    if (model && model.trainable === false && !LT.value("model.pretrained_model_name_or_path")) {
      return { text: model.reason, label: t("Choose another"), go: () => LT.showOption("model.pretrained_model_name_or_path") };
    }
    const [problem, ...others] = LT.problems();
    if (problem && problem.proposal) {
      return {
        text: problem.message,
        more: others.length,
        label: t("Call it {name}", { name: problem.proposal }),
        go: () => LT.set({ "save.output_name": problem.proposal }),
      };
    }
    const text = problem && `${problem.message} ${problem.fix || ""}`.trim();
    if (problem && !LT.options.has(problem.path)) return { text, label: t("Try again"), go: LT.readPlan };
    if (problem) return { text, more: others.length, label: t("Show it"), go: () => LT.showOption(problem.path) };
    if (LT.isSuggesting()) return { text: t("Looking for what suits your pictures…"), label: "", go: null };
    if (!LT.cache.plan) return { text: checking ? t("Counting the steps…") : t("The plan is not known yet."), label: "", go: null };
    return null;
  };

  const paintStart = () => {
    const stop = blocked();
    const plan = LT.cache.plan;
    const words = stop
      ? h("div.lt-blocked", {},
          h("span", {},
            stop.go && LT.icon("warning"),
            stop.text,
            stop.more > 0 && ` ${LT.tn(stop.more, "(and {n} more)", "(and {n} more)")}`,
          ),
          stop.go && LT.button(stop.label, { kind: "small", onclick: stop.go }),
        )
      : h("div.lt-muted", {},
          LT.suggestionsOpen() && h("div", {}, t("Starts with the values on the left:")),
          !LT.suggestionsOpen() &&
            LT.suggestionsRefused() &&
            h("div.lt-refused", {},
              LT.icon("warning", "lt-note"),
              t("Without the suggested settings."),
              h("button.lt-link", { onclick: LT.suggest }, t("See them again")),
            ),
          h("div", {}, t("{n} steps, {about}", { n: LT.count(plan.total_steps), about: about(plan) })),
        );
    const kind = LT.suggestionsOpen() || stop ? "" : "primary";
    LT.fill(
      parts.start,
      words,
      LT.button(starting ? t("Starting…") : t("Start training"), {
        kind,
        icon: "play",
        id: "lora_trainer_start",
        disabled: Boolean(stop) || starting,
        onclick: start,
      }),
    );
  };

  const start = () => LT.start(LT.config());
  /** Starts a run of this config and shows it; resolves to whether it began. */
  LT.start = async (config) => {
    starting = true;
    paintStart();
    try {
      const { run } = await LT.post("runs", { config });
      LT.openRun(run);
      LT.askToNotify();
      await LT.poll();
      LT.goToStep("train");
      return true;
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      const optionProblems = error.problems.filter((problem) => LT.options.has(problem.path));
      if (optionProblems.length && LT.cache.plan) LT.cache.plan = { ...LT.cache.plan, problems: [...optionProblems, ...LT.warnings()] };
      if (!optionProblems.length) LT.showError(error);
      LT.emit("plan");
    } finally {
      starting = false;
      paintStart();
    }
    return false;
  };
})();
