/* The data of one run: its events, read incrementally and sorted by subject. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const t = (...args) => LT.t(...args);
  const cache = new Map();
  const AT_ONCE = 20000; // events in one answer
  const LIMIT = 4; // runs whose events are remembered

  const empty = (id) => ({
    id, next: 0, config: null, plan: null, started: 0, ended: 0, outcome: null, problems: [],
    steps: [], losses: [], smoothed: [], rates: [], seconds: [], // one entry a step
    epochs: [], validations: [], saves: [], samples: [], changes: [], log: [], warnings: 0, last: null, reading: null, device: "",
    groups: {}, processes: 1, warned: null, schedule: null, planned: 0, wantsSchedule: true,
  });
  LT.runData = (id) => {
    if (!cache.has(id)) {
      if (cache.size >= LIMIT) cache.delete(cache.keys().next().value);
      cache.set(id, empty(id));
    }
    return cache.get(id);
  };

  /** The step that a run has reached: the status and the events come at different times, the later one counts. */
  LT.stepOf = (run) => {
    const data = cache.get(run.id);
    return Math.max(run.step || 0, (run.outcome ? 0 : data && data.last && data.last.step) || 0);
  };

  /** Reads new events; resolves to true when there were any. */
  LT.readOn = (id) => {
    const data = LT.runData(id);
    data.reading = data.reading || readOn(data).finally(() => (data.reading = null));
    return data.reading;
  };
  const readOn = async (data) => {
    const address = `runs/${encodeURIComponent(data.id)}`;
    const config = data.config ? null : LT.get(`${address}/config`).catch(() => ({ config: null }));
    let count = AT_ONCE;
    let news = false;
    while (count === AT_ONCE) {
      const { events, next } = await LT.get(`${address}/events?after=${data.next}&limit=${AT_ONCE}`);
      events.forEach((event) => take(data, event));
      data.next = next;
      count = events.length;
      news = news || count > 0;
    }
    if (config) data.config = (await config).config;
    readSchedule(data); // the chart is drawn meanwhile
    return news;
  };
  /** Reads the planned learning rates of a run, again after each change that affects them. */
  const readSchedule = async (data) => {
    if (!data.wantsSchedule || !data.plan) return;
    data.wantsSchedule = false;
    const { schedule = null, total_steps, epochs } = await LT.get(`runs/${encodeURIComponent(data.id)}/schedule`).catch(() => ({}));
    data.schedule = schedule;
    if (total_steps) data.plan = { ...data.plan, total_steps, epochs };
    data.planned += 1;
    LT.emit("planned", data.id);
  };
  const RATE_OPTION = /^(optimizer|schedule|steps)\./;

  const line = (data, event, words, look = "") => data.log.push({ time: event.time, words, look });

  const HANDLERS = {
    started(data, event) {
      data.plan = event.plan;
      data.started = data.started || event.time;
      data.device = event.device;
      data.processes = event.processes || 1;
      data.wantsSchedule = true;
      line(
        data,
        event,
        t("started on {device}, {dtype}: {n} steps", {
          device: event.device,
          dtype: event.dtype,
          n: LT.count(event.plan.total_steps || 0),
        }),
      );
    },
    phase(data, event) {
      if (event.name.toLowerCase() !== "training") {
        line(data, event, `${phaseName(event.name)}${event.total ? ` (${LT.count(event.total)})` : ""}`, "quiet");
      }
    },
    stepped(data, event) {
      data.steps.push(event.step);
      data.losses.push(event.loss);
      data.smoothed.push(event.loss_average);
      data.rates.push(event.lr);
      data.seconds.push(event.seconds);
      data.epochs.push(event.epoch);
      for (const [name, rate] of Object.entries(event.rates || {})) {
        (data.groups[name] = data.groups[name] || [])[data.steps.length - 1] = rate;
      }
      data.last = event;
    },
    validated(data, event) {
      data.validations.push(event);
      const best = Math.min(...data.validations.map((one) => one.loss));
      const values = { epoch: event.epoch, step: LT.count(event.step), loss: LT.loss(event.loss) };
      if (event.step === 0) line(data, event, t("before training: validation loss {loss}", values));
      else {
        line(
          data,
          event,
          event.loss <= best && data.validations.length > 1
            ? t("step {step}, epoch {epoch}: validation loss {loss}, best so far", values)
            : t("step {step}, epoch {epoch}: validation loss {loss}", values),
        );
      }
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
      if (data.last && !(event.path || "").startsWith("memory.")) {
        data.warned = { words: LT.messageText(event.message), step: data.last.step };
      }
      line(data, event, LT.messageText(event.message), "warn");
    },
    changed(data, event) {
      data.changes.push(event);
      data.wantsSchedule = data.wantsSchedule || RATE_OPTION.test(event.path);
      line(data, event, t("{setting}: {old} → {new}", LT.changeWords(event)), "change");
    },
    paused: (data, event) =>
      line(
        data,
        event,
        event.reason === "rest"
          ? t("rest after step {step}", { step: LT.count(event.step) })
          : t("paused at step {step}", { step: LT.count(event.step) }),
      ),
    resumed(data, event) {
      if (event.reason === "state") back(data, event.step);
      line(
        data,
        event,
        event.reason === "state"
          ? t("goes on from the state of step {step}", { step: LT.count(event.step) })
          : t("goes on from step {step}", { step: LT.count(event.step) }),
      );
    },
    finished: (data, event) => end(data, event, "finished", t("finished at step {step}", { step: LT.count(event.step) })),
    stopped: (data, event) => end(data, event, "stopped", t("stopped at step {step}", { step: LT.count(event.step) })),
    failed(data, event) {
      data.problems = event.problems || [];
      end(
        data,
        event,
        "failed",
        t("failed at step {step}: {why}", { step: LT.count(event.step), why: LT.messageText((data.problems[0] || {}).message) }),
        "bad",
      );
    },
  };
  /** Drops what came after the state that a run resumes from: those steps are trained again. */
  const back = (data, step) => {
    const firstDropped = data.steps.findIndex((one) => one > step);
    if (firstDropped >= 0) {
      [data.steps, data.losses, data.smoothed, data.rates, data.seconds, data.epochs, ...Object.values(data.groups)].forEach((list) =>
        list.splice(firstDropped),
      );
    }
    ["validations", "saves", "samples"].forEach((name) => (data[name] = data[name].filter((one) => one.step <= step)));
    data.changes = data.changes.filter((one) => one.step <= step);
    if (data.last && data.last.step > step) data.last = null;
    Object.assign(data, { outcome: null, ended: 0, endedAt: 0, problems: [], wantsSchedule: true });
  };
  const end = (data, event, outcome, words, look = "") => {
    data.outcome = outcome;
    data.ended = event.time;
    data.endedAt = event.step;
    line(data, event, words, look);
  };
  const take = (data, event) => HANDLERS[event.event] && HANDLERS[event.event](data, event);

  const phaseName = (name) =>
    ({
      planning: t("planning"),
      fetching: t("fetching the model (MB)"),
      caching: t("encoding the pictures"),
      encoding: t("encoding the captions"),
      sampling: t("drawing previews"),
      saving: t("saving"),
      validating: t("validating"),
      rendering: t("rendering the grid"),
      ranking: t("ranking"),
    })[name.toLowerCase()] || name;
  LT.phaseName = phaseName;

  /** Epoch with the lowest validation loss among those saved: {epoch, step, loss}, or null. */
  LT.bestOf = (data) => {
    const saved = data.saves.filter((save) => !save.final);
    const candidates = data.validations.filter((one) => one.step > 0 && (!saved.length || saved.some((save) => save.step === one.step)));
    return candidates.length ? candidates.reduce((best, one) => (one.loss < best.loss ? one : best)) : null;
  };
  /** The files of numbered epochs (or steps), without the final one. */
  LT.numbered = (data) => data.saves.filter((save) => !save.final);

  /** {setting, old, new} of a changed event, as the form writes them. */
  LT.changeWords = ({ path, old: previous, new: value }) => {
    const option = LT.options.get(path);
    const words = (one) =>
      !option
        ? String(one)
        : one === null || one === ""
          ? t("automatic")
          : option.type === "bool"
            ? one
              ? t("on")
              : t("off")
            : option.type === "choice"
              ? LT.choiceLabel(path, one)
              : LT.shown(option, one).replace(/\n/g, " / ");
    return { setting: LT.labelOf(path), old: words(previous), new: words(value) };
  };

  /** Learning rate that is planned for a step (1 is the first): the U-Net's, or the first group's where only others are trained.
      An optimizer that finds the size of its steps is told multiples of it: they go on from what it found. */
  LT.plannedRate = (data) => {
    const groups = data.schedule || (data.plan && data.plan.schedule) || {};
    const points = groups.unet || Object.values(groups)[0] || [];
    if (!LT.findsRate((data.config || {}).optimizer)) return (step) => LT.curveAt(points, step);
    const base = data.last ? LT.curveAt(points, data.last.step) : 0;
    return (step) => (base > 0 ? (data.last.lr * LT.curveAt(points, step)) / base : null);
  };
  /** Whether the optimizer of these settings adapts its learning rate by itself. */
  LT.findsRate = (optimizer) => {
    const option = LT.options.get("optimizer.type");
    return Boolean(((option.facts || {})[(optimizer || {}).type || option.default] || {}).finds);
  };
})();
