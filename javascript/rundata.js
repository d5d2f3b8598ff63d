/* What is known of one run: its events, read on from where the last reading ended, sorted by subject. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const t = (...args) => LT.t(...args);
  const kept = new Map();
  const LIMIT = 4; // runs whose events are remembered

  const empty = (id) => ({
    id, next: 0, config: null, plan: null, started: 0, ended: 0, outcome: null, problems: [],
    steps: [], losses: [], smoothed: [], rates: [], seconds: [], // one entry a step
    epochs: [], validations: [], saves: [], samples: [], log: [], warnings: 0, last: null, reading: null, device: "",
  });
  LT.runData = (id) => {
    if (!kept.has(id)) {
      if (kept.size >= LIMIT) kept.delete(kept.keys().next().value);
      kept.set(id, empty(id));
    }
    return kept.get(id);
  };

  /** Reads on; resolves to true when something new came. */
  LT.readOn = (id) => {
    const data = LT.runData(id);
    data.reading = data.reading || readOn(data).finally(() => (data.reading = null));
    return data.reading;
  };
  const readOn = async (data) => {
    const address = `runs/${encodeURIComponent(data.id)}`;
    if (!data.config) data.config = (await LT.get(`${address}/config`).catch(() => ({ config: null }))).config;
    let news = false;
    for (;;) {
      const { events, next } = await LT.get(`${address}/events?after=${data.next}`);
      if (!events.length) return news;
      events.forEach((event) => take(data, event));
      data.next = next;
      news = true;
    }
  };

  const line = (data, event, words, look = "") => data.log.push({ time: event.time, words, look });

  const TAKES = {
    started(data, event) {
      data.plan = event.plan;
      data.started = data.started || event.time;
      data.device = event.device;
      line(data, event, t("started on {device}, {dtype}: {n} steps", { device: event.device, dtype: event.dtype, n: LT.count(event.plan.total_steps || 0) }));
    },
    phase(data, event) {
      if (event.name.toLowerCase() !== "training") line(data, event, `${phaseName(event.name)}${event.total ? ` (${LT.count(event.total)})` : ""}`, "quiet");
    },
    stepped(data, event) {
      data.steps.push(event.step);
      data.losses.push(event.loss);
      data.smoothed.push(event.loss_average);
      data.rates.push(event.lr);
      data.seconds.push(event.seconds);
      data.epochs.push(event.epoch);
      data.last = event;
    },
    validated(data, event) {
      data.validations.push(event);
      const best = Math.min(...data.validations.map((one) => one.loss));
      const values = { epoch: event.epoch, step: LT.count(event.step), loss: LT.loss(event.loss) };
      if (event.step === 0) line(data, event, t("before training: validation loss {loss}", values));
      else line(data, event, event.loss <= best && data.validations.length > 1 ? t("step {step}, epoch {epoch}: validation loss {loss}, best so far", values) : t("step {step}, epoch {epoch}: validation loss {loss}", values));
    },
    saved(data, event) {
      data.saves.push(event);
      line(data, event, t("saved {file}, {size}", { file: LT.fileName(event.path), size: LT.megabytes(event.bytes / 1048576) }));
    },
    sampled(data, event) {
      data.samples.push(event);
      line(data, event, event.step ? t("preview at step {step}", { step: LT.count(event.step) }) : t("preview before training"), "quiet");
    },
    warned(data, event) {
      data.warnings += 1;
      line(data, event, LT.worded(event.message), "warn");
    },
    changed: (data, event) => line(data, event, t("{setting}: {old} → {new}", { setting: LT.labelOf(event.path), old: event.old, new: event.new })),
    paused: (data, event) => line(data, event, t("paused at step {step}", { step: LT.count(event.step) })),
    resumed: (data, event) => line(data, event, t("goes on from step {step}", { step: LT.count(event.step) })),
    finished: (data, event) => end(data, event, "finished", t("finished at step {step}", { step: LT.count(event.step) })),
    stopped: (data, event) => end(data, event, "stopped", t("stopped at step {step}", { step: LT.count(event.step) })),
    failed(data, event) {
      data.problems = event.problems || [];
      end(data, event, "failed", t("failed at step {step}: {why}", { step: LT.count(event.step), why: LT.worded((data.problems[0] || {}).message) }), "bad");
    },
  };
  const end = (data, event, outcome, words, look = "") => {
    data.outcome = outcome;
    data.ended = event.time;
    data.endedAt = event.step;
    line(data, event, words, look);
  };
  const take = (data, event) => TAKES[event.event] && TAKES[event.event](data, event);

  const phaseName = (name) =>
    ({ planning: t("planning"), caching: t("encoding the pictures"), encoding: t("encoding the captions"), sampling: t("drawing previews"), saving: t("saving"), validating: t("validating"), rendering: t("rendering the grid"), ranking: t("ranking") })[name.toLowerCase()] || name;
  LT.phaseName = phaseName;

  /** Epoch with the lowest validation loss among those saved: {epoch, step, loss}, or null. */
  LT.bestOf = (data) => {
    const saved = data.saves.filter((save) => !save.final);
    const at = data.validations.filter((one) => one.step > 0 && (!saved.length || saved.some((save) => save.step === one.step)));
    return at.length ? at.reduce((best, one) => (one.loss < best.loss ? one : best)) : null;
  };
  /** Files of numbered epochs (or steps): without the one for the end. */
  LT.numbered = (data) => data.saves.filter((save) => !save.final);

  /** Learning rate that the schedule plans for a step (1 is the first), from the run's own config. */
  LT.plannedRate = (data) => {
    const config = data.config || {};
    const { optimizer = {}, schedule = {} } = config;
    const value = (section, path, name) => (section[name] !== undefined ? section[name] : LT.defaultOf(path + name));
    const base = value(optimizer, "optimizer.", "learning_rate");
    const unet = value(optimizer, "optimizer.", "unet_lr");
    const text = value(optimizer, "optimizer.", "text_encoder_lr");
    const rate = unet === 0 ? (text === null ? base : text) : unet === null || unet === undefined ? base : unet;
    const total = (data.plan && data.plan.total_steps) || 1;
    const asked = value(schedule, "schedule.", "warmup_steps");
    const warmup = typeof asked === "string" && asked.endsWith("%") ? Math.round((parseFloat(asked) / 100) * total) : Number(asked) || 0;
    const floor = value(schedule, "schedule.", "min_lr_ratio") || 0;
    const shape = { constant: () => 1, linear: (done) => floor + (1 - floor) * (1 - done), cosine: (done) => floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * done)) };
    const chosen = shape[value(schedule, "schedule.", "type")] || shape.constant;
    return (step) => {
      const at = step - 1;
      if (at < warmup) return (rate * at) / warmup;
      return rate * chosen(Math.min(1, (at - warmup) / Math.max(1, total - warmup)));
    };
  };
})();
