/* Step 4: one run, active or ended: its commands, progress, loss, previews, log. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const parts = {};
  let pendingCommand = ""; // the command that was sent and has not shown its effect
  let lastOnly = false;
  let lastRunId = "";

  LT.buildTrain = (panel) => {
    parts.empty = h("div.lt-empty.lt-nothing");
    parts.head = h("div.lt-runtitle");
    parts.bar = h("div.lt-epochs");
    parts.note = h("div.lt-outcome");
    parts.tiles = h("div.lt-tiles");
    parts.chart = LT.makeChart();
    parts.verdict = h("div.lt-verdictline");
    parts.health = h("div.lt-health");
    const ranges = [
      { value: "all", label: t("Whole run") },
      { value: "last", label: t("Last 200 steps") },
    ];
    const range = LT.segments(
      ranges,
      "all",
      (value) => {
        lastOnly = value === "last";
        paint();
      },
      { label: t("Which steps"), kind: "lt-smallsegments.lt-nophone" },
    );
    parts.loss = h("div.lt-card.lt-loss", {},
      h("div.lt-cardhead", {}, h("div.lt-title", {}, t("Loss")), legend(), h("span.lt-gap"), range),
      parts.chart.element,
      parts.verdict,
      parts.health,
    );
    parts.previews = LT.makePreviews();
    parts.log = LT.makeLog();
    parts.body = h("div.lt-trainbody", {}, parts.loss, parts.previews.element, parts.log.element);
    LT.fill(panel, parts.empty, h("div.lt-trainall", {}, parts.head, parts.bar, parts.note, parts.tiles, parts.body));
    parts.all = panel.querySelector(".lt-trainall");
    LT.on("show train", refresh);
    LT.on("run", refresh);
    ["runs", "planned"].forEach((name) => LT.on(name, () => LT.state.step === "train" && paint()));
    LT.on("status", onStatus);
    refresh();
  };

  const legend = () => {
    const one = (look, words) => h("span", {}, h(`i.${look}`), words);
    return h("div.lt-legendrow", {},
      one("lt-k-smooth", t("loss, smoothed")),
      one("lt-k-dot", t("each step")),
      one("lt-k-heldbox", t("validation")),
      one("lt-k-rate", t("learning rate")),
      h("span", {}, LT.icon("save"), t("saved")),
    );
  };

  const onStatus = ({ before }) => {
    const run = LT.cache.status.run;
    const previous = before && before.run;
    if (run && previous && run.id === previous.id && run.state !== previous.state) {
      pendingCommand = "";
      if (!LT.activeRun()) ended(run);
    }
    if (run ? !previous || run.id !== previous.id || (run.state !== previous.state && !LT.activeRun()) : previous) LT.loadRuns();
    title(run);
    if (LT.state.step === "train") refresh();
  };

  const refresh = async () => {
    const id = LT.shownId();
    if (LT.state.step !== "train") return;
    if (!id) return paint();
    paint(); // what the status says now; the events behind it may take a moment
    try {
      await LT.readOn(id);
      LT.emit("data");
      paint();
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      if (error.status === 404 && LT.state.run === id) LT.openRun(null);
    }
    return null;
  };

  /* ---- the page's title and system notifications ---- */

  const plainTitle = document.title;
  const title = (run) => {
    const active = LT.activeRun();
    if (LT.isLrSearch(run)) return;
    if (active && active.total_steps) {
      const percent = LT.percent(LT.stepOf(active) / active.total_steps);
      document.title = `${percent} ${active.name} · ${plainTitle}`;
    } else if (run && lastRunId === run.id && run.outcome) {
      document.title = `${{ finished: "✓", failed: "✗" }[run.outcome] || "■"} ${run.name} · ${plainTitle}`;
    } else if (document.title !== plainTitle && /^[\d✓✗■]/.test(document.title)) document.title = plainTitle;
    if (active) lastRunId = active.id;
  };
  LT.askToNotify = () => {
    if ("Notification" in window && window.Notification.permission === "default") window.Notification.requestPermission().catch(() => null);
  };
  const ended = (run) => {
    if (run.kind !== "train") return;
    const words = {
      finished: t("{name} is trained.", { name: run.name }),
      stopped: t("{name} was stopped.", { name: run.name }),
      failed: t("{name} failed.", { name: run.name }),
    }[run.state];
    if (!words) return;
    if ("Notification" in window && window.Notification.permission === "granted") {
      try {
        new window.Notification(words, { body: run.error || "" });
      } catch (error) {
        /* phones allow it from a service worker only */
      }
    }
    if (LT.state.step !== "train") {
      LT.toast(words, { kind: run.state === "failed" ? "bad" : "good", action: { label: t("Show it"), act: () => LT.goToStep("train") } });
    }
  };

  /* ---- painting ---- */

  const paint = () => {
    const run = LT.shownRun();
    parts.empty.hidden = Boolean(run);
    parts.all.hidden = !run;
    if (!run) {
      LT.fill(
        parts.empty,
        LT.icon("play"),
        h("b", {}, t("Nothing is being trained")),
        h("span", {}, t("Choose pictures, look at the settings, and press Start training.")),
        LT.button(t("Settings"), { kind: "primary", after: "right", onclick: () => LT.goToStep("settings") }),
      );
      return;
    }
    const data = LT.runData(run.id);
    const active = LT.activeRun();
    const live = Boolean(active && active.id === run.id);
    paintHead(run, data, live);
    paintBar(run, data, live);
    const note = LT.outcomeNote(run, data, live);
    LT.fill(parts.note, note);
    parts.note.hidden = !note;
    parts.tiles.hidden = ["failed", "interrupted"].includes(run.state);
    if (!parts.tiles.hidden) paintTiles(run, data, live);
    parts.loss.classList.toggle("lt-waiting", !data.steps.length);
    parts.chart.paint(data, { live, last: lastOnly });
    const verdict = LT.verdictOf(data, live);
    parts.verdict.className = `lt-verdictline lt-v-${verdict.look}`;
    LT.fill(parts.verdict, LT.icon({ good: "check", warn: "warning", calm: "search" }[verdict.look]), verdict.words);
    const health = LT.healthOf(data, live);
    LT.fill(parts.health, health);
    parts.health.hidden = !health.length;
    parts.body.classList.toggle("lt-failed", run.state === "failed");
    parts.previews.element.hidden = run.state === "failed" && !data.samples.length;
    parts.previews.paint(data, live);
    parts.log.paint(run, data);
  };

  const command = async (run, word) => {
    pendingCommand = word;
    paint();
    try {
      await LT.post(`runs/${encodeURIComponent(run.id)}/control`, { command: word });
      if (word === "save" || word === "sample") {
        LT.toast(word === "save" ? t("Saved after this step.") : t("Drawn after this step."), { kind: "good" });
      }
    } catch (error) {
      LT.showError(error);
    }
    window.setTimeout(
      () => {
        if (pendingCommand === word) {
          pendingCommand = "";
          paint();
        }
      },
      word === "save" || word === "sample" ? 1500 : 10000,
    );
    LT.poll();
  };
  LT.command = command;

  const onGpu = (data) => LT.onGpu(data.device || (LT.cache.status && LT.cache.status.memory && LT.cache.status.memory.device));
  const askStop = async (run, data) => {
    const saved = LT.numbered(data).length;
    const lines = [
      t("The run is at step {step} of {total}.", { step: LT.count(LT.stepOf(run)), total: LT.count(run.total_steps) }),
      saved ? LT.tn(saved, "{n} file is saved already and stays.", "{n} files are saved already and stay.") : t("No file is saved yet."),
    ];
    const answer = await LT.ask(t("Stop training {name}?", { name: run.name }), lines.map((line) => h("p", {}, line)), [
      { label: t("Stop and save"), icon: "save", kind: "primary" },
      { label: t("Stop without saving"), icon: "stop", kind: "bad" },
      { label: t("Go on training") },
    ]);
    if (answer === 0) command(run, "stop");
    if (answer === 1) command(run, "stop-discard");
  };
  LT.askStop = () => {
    const run = LT.activeRun();
    if (run && run.kind !== "grid") askStop(run, LT.runData(run.id));
  };

  const lengthWords = (plan) =>
    LT.endsEarly(plan)
      ? t("{n} steps, {each} an epoch", { n: LT.count(plan.total_steps), each: LT.count(plan.steps_per_epoch) })
      : t("{epochs} epochs × {steps} steps", { epochs: LT.count(plan.epochs), steps: LT.count(plan.steps_per_epoch) });

  const paintHead = (run, data, live) => {
    const plan = data.plan || {};
    const network = (data.config || {}).network || {};
    const facts = [
      plan.images && LT.tn(plan.images, "{n} picture", "{n} pictures"),
      plan.epochs && lengthWords(plan),
      plan.epochs && t("rank {n}", { n: network.dim === undefined ? LT.defaultOf("network.dim") : network.dim }),
      run.own_process && live && t("in a process of its own"),
      data.processes > 1 && t("{n} processes", { n: data.processes }),
      data.started && h("span.lt-nophone", {}, t("started {time}", { time: LT.date(data.started) })),
    ].filter(Boolean);
    const waiting = (word) => pendingCommand === word;
    const paused = run.state === "paused";
    const pausing = onGpu(data) ? t("Pause and free the GPU") : t("Pause");
    const early = ["planning", "caching"].includes(run.state);
    const buttons = live
      ? [
          paused
            ? LT.button(waiting("resume") ? t("Going on…") : t("Go on"), {
                icon: "play",
                kind: "primary.lt-first",
                disabled: waiting("resume"),
                onclick: () => command(run, "resume"),
              })
            : LT.button(waiting("pause") ? t("Pausing…") : pausing, {
                icon: "pause",
                kind: "lt-first",
                disabled: waiting("pause") || run.state === "stopping",
                onclick: () => command(run, "pause"),
              }),
          !paused &&
            LT.button(t("Save now"), {
              icon: "save",
              disabled: waiting("save") || early || run.state === "stopping",
              onclick: () => command(run, "save"),
            }),
          !paused &&
            LT.button(t("Preview now"), {
              icon: "picture",
              disabled: waiting("sample") || early || run.state === "stopping",
              onclick: () => command(run, "sample"),
            }),
          LT.canChange() &&
            LT.button(t("Change…"), {
              icon: "pencil",
              disabled: run.state === "stopping" || !data.config,
              onclick: () => LT.askChange(run, data),
            }),
          LT.button(run.state === "stopping" || waiting("stop") || waiting("stop-discard") ? t("Stopping…") : t("Stop…"), {
            icon: "stop",
            kind: "stop",
            disabled: run.state === "stopping" || waiting("stop") || waiting("stop-discard"),
            onclick: () => LT.askStop(),
          }),
        ]
      : [
          LT.numbered(data).length > 0 &&
            LT.button(LT.tn(LT.numbered(data).length, "Compare the file", "Compare the {n} files"), {
              icon: "grid",
              kind: run.state === "finished" ? "primary" : "",
              onclick: () => LT.goToStep("compare"),
            }),
          LT.resumable(run) &&
            run.state === "finished" &&
            LT.button(t("More epochs…"), { icon: "plus", onclick: () => LT.askMoreEpochs(run) }),
          LT.resumable(run) &&
            run.state === "stopped" &&
            LT.button(t("Resume"), { icon: "play", kind: "primary", onclick: () => LT.resumeRun(run) }),
          LT.button(t("Clone settings"), { onclick: () => LT.cloneRun(run) }),
        ];
    const key = JSON.stringify([
      run.id,
      run.name,
      run.state,
      live,
      pendingCommand,
      facts.length,
      plan.total_steps,
      LT.numbered(data).length,
      Boolean(data.config),
      LT.resumable(run),
    ]);
    if (parts.head.dataset.drawn === key) return;
    parts.head.dataset.drawn = key;
    const name = live ? (paused ? t("{name} is paused", { name: run.name }) : t("Training {name}", { name: run.name })) : run.name;
    const separated = facts.flatMap((fact, index) =>
      index ? [fact instanceof Node ? h("span.lt-nophone", {}, " · ") : " · ", fact] : [fact],
    );
    LT.fill(
      parts.head,
      h("b.lt-bigname", {}, name),
      h("span.lt-muted.lt-runfacts", {}, separated),
      h("span.lt-gap"),
      h("div.lt-runbuttons", {}, buttons),
    );
  };

  /* ---- the bar: a segment for each epoch ---- */

  const paintBar = (run, data, live) => {
    const plan = data.plan || {};
    const epochs = plan.epochs || run.epochs || 1;
    const each = plan.steps_per_epoch || run.total_steps || 1;
    const step = Math.max(LT.stepOf(run), (data.last && data.last.step) || 0);
    const total = plan.total_steps || run.total_steps || each * epochs;
    const best = LT.bestOf(data);
    const saved = new Set(LT.numbered(data).map((save) => save.epoch));
    const over = run.state === "failed" || run.state === "interrupted";
    const current = Math.min(epochs, Math.max(1, Math.ceil(step / each)));
    const busy = live || over;
    const every = Math.ceil(epochs / 12);
    const key = JSON.stringify([run.id, epochs, each, total, step, [...saved], best && best.epoch, run.state]);
    if (parts.bar.dataset.drawn === key) return;
    parts.bar.dataset.drawn = key;
    const segment = (epoch) => {
      const size = Math.max(1, Math.min(each, total - (epoch - 1) * each));
      const done = Math.max(0, Math.min(1, (step - (epoch - 1) * each) / size));
      const now = busy && epoch === current;
      const words = epoch === 1 ? t("epoch {n}", { n: 1 }) : String(epoch);
      const labelled = epoch === 1 || epoch % every === 0 || now || (best && epoch === best.epoch);
      const sign = (name, look, tip) => h("span", { title: tip }, LT.icon(name, look));
      return h(`div.lt-epoch${now ? ".now" : ""}${now && over ? ".bad" : ""}`, { style: { flex: String(size) } },
        h("i", {}, h("i", { style: { width: `${100 * done}%` } })),
        labelled &&
          h("span", {},
            every > 1 || epochs > 12
              ? h("span", {}, words)
              : epoch === 1
                ? [h("span.lt-nophone", {}, words), h("span.lt-phone", {}, "1")]
                : words,
            saved.has(epoch) && epochs <= 16 && sign("save", "lt-nophone", t("saved")),
            best && epoch === best.epoch && sign("star", "lt-blue", t("best validation loss so far")),
            now && over && sign("cross", "lt-bad", t("failed")),
          ),
      );
    };
    parts.bar.classList.toggle("lt-many", epochs > 40);
    parts.bar.setAttribute("role", "progressbar");
    parts.bar.setAttribute("aria-valuenow", String(step));
    parts.bar.setAttribute("aria-valuemax", String(total));
    LT.fill(parts.bar, [...Array(epochs).keys()].map((index) => segment(index + 1)));
  };

  /* ---- six tiles ---- */

  const paintTiles = (run, data, live) => {
    const plan = data.plan || {};
    const config = data.config || {};
    const tail = data.last;
    const step = LT.stepOf(run) || (tail ? tail.step : 0);
    const each = plan.steps_per_epoch || 0;
    const average = data.seconds.length ? data.seconds.reduce((sum, one) => sum + one, 0) / data.seconds.length : null;
    const speed = run.speed || average; // the server's: of late, or of the whole run once it has ended
    const perStep = (((config.data || {}).batch_size || 1) * ((config.steps || {}).gradient_accumulation_steps || 1));
    const left = live ? run.seconds_left : 0;
    const memory = LT.cache.status && LT.cache.status.memory;
    const vram = tail && tail.vram_mb;
    const elapsed = data.ended && data.started ? data.ended - data.started : null;
    const phase = live && !tail && run.phase;
    const tile = (name, value, unit, below, more) =>
      h("div.lt-tile", {},
        h("span", {}, name),
        h("b", {}, value, unit && h("small", {}, unit)),
        h("span", {}, below, more && h("span.lt-nophone", {}, more)),
      );
    const inEpoch = each && step ? ((step - 1) % each) + 1 : 0;
    LT.fill(
      parts.tiles,
      tile(
        t("Step"),
        LT.count(step),
        "",
        phase
          ? `${LT.phaseName(phase)}${run.total ? ` ${LT.count(run.done)} / ${LT.count(run.total)}` : ""}`
          : t("of {n}", { n: LT.count(plan.total_steps || run.total_steps || 0) }),
      ),
      tile(
        t("Epoch"),
        step ? LT.count(run.epoch || (tail && tail.epoch) || Math.ceil(step / (each || 1))) : "–",
        "",
        plan.epochs
          ? [
              t("of {n}", { n: LT.count(plan.epochs) }),
              live && each ? ` · ${t("{n} of {total} steps", { n: LT.count(inEpoch), total: LT.count(each) })}` : "",
            ]
          : "",
      ),
      live
        ? tile(
            t("Time left"),
            run.state === "paused" ? t("paused") : left === null || left === undefined ? "–" : LT.duration(left),
            "",
            run.state === "paused"
              ? ""
              : left
                ? t("ends about {time}", { time: LT.clock(Date.now() / 1000 + left) })
                : t("known after some steps"),
          )
        : tile(t("Time"), LT.duration(elapsed), "", data.ended ? t("ended {time}", { time: LT.date(data.ended) }) : ""),
      tile(
        t("Loss"),
        tail ? LT.loss(tail.loss_average) : "–",
        "",
        tail ? [h("span.lt-nophone", {}, t("smoothed"), " · "), t("this step {loss}", { loss: LT.loss(tail.loss) })] : "",
      ),
      tile(
        t("Speed"),
        speed === null ? "–" : speed >= 100 ? LT.count(speed) : speed.toPrecision(2),
        speed !== null && t("s per step"),
        speed ? t("{n} pictures per second", { n: Number((perStep / speed).toPrecision(2)) }) : "",
      ),
      vram
        ? tile(
            LT.memoryName(onGpu(data)),
            LT.gigabytes(vram),
            "GB",
            memory && live ? t("{n} GB still free", { n: LT.gigabytes(memory.free_mb) }) : "",
          )
        : tile(
            t("Memory"),
            memory ? LT.gigabytes(memory.total_mb - memory.free_mb) : "–",
            memory && "GB",
            memory ? t("of the computer · {n} GB still free", { n: LT.gigabytes(memory.free_mb) }) : "",
          ),
    );
  };

  /** Keys of this step: arrows go through the previews. */
  LT.trainKey = (event) => {
    const offset = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!offset || parts.previews.element.hidden) return false;
    parts.previews.step(offset);
    return true;
  };
})();
