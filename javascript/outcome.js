/* Step 4: the notes on a run that is paused, finished, stopped or failed, and its log. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  LT.outcomeNote = (run, data, live) => {
    if (run.state === "paused") return paused(run, data);
    if (live) return waiting();
    if (run.state === "failed" || run.state === "interrupted") return failed(run, data);
    if (run.state === "finished") return finished(data);
    return run.state === "stopped"
      ? banner(
          "calm",
          "stop",
          t("Stopped at step {step} of {total}.", { step: LT.count(data.endedAt || run.step), total: LT.count(run.total_steps) }),
          filesWords(data),
        )
      : null;
  };

  const banner = (look, sign, strong, more) =>
    h(`div.lt-banner.${look}`, {}, LT.icon(sign), h("div", {}, h("b", {}, strong), more && h("span", {}, " ", more)));

  const paused = (run, data) => {
    if (run.paused_because === "rest") {
      return banner(
        "wait",
        "pause",
        t("Rest after step {step} of {total}.", { step: LT.count(LT.stepOf(run)), total: LT.count(run.total_steps) }),
        t("The graphics card cools down between epochs; the run goes on by itself. Go on ends the rest now."),
      );
    }
    if (run.paused_because === "disk") {
      return banner(
        "wait",
        "pause",
        t("Paused at step {step} of {total}.", { step: LT.count(LT.stepOf(run)), total: LT.count(run.total_steps) }),
        t("The disk is full: free some space, then go on. Nothing is lost."),
      );
    }
    const host = run.own_process
      ? ""
      : LT.onGpu(data.device)
        ? t("The GPU and the model are free: other tabs can draw.")
        : t("The model is free: other tabs can draw.");
    return banner(
      "wait",
      "pause",
      t("Paused at step {step} of {total}.", { step: LT.count(LT.stepOf(run)), total: LT.count(run.total_steps) }),
      `${host} ${t("The run goes on exactly where it stopped.")}`,
    );
  };

  /** Generations of the host's other tabs that wait for this run. */
  const waiting = () => {
    const count = ((LT.cache.status || {}).host || {}).waiting || 0;
    return (
      count > 0 &&
      banner(
        "wait",
        "picture",
        LT.tn(count, "{n} picture waits to be drawn in another tab.", "{n} pictures wait to be drawn in other tabs."),
        t("Pause lets them through."),
      )
    );
  };

  const filesWords = (data) => {
    const files = LT.numbered(data).length;
    const best = LT.bestOf(data);
    const words = files ? LT.tn(files, "{n} file is saved.", "{n} files are saved.") : t("No file was saved.");
    return best
      ? `${words} ${t("Best by validation loss: epoch {epoch} ({loss}).", { epoch: best.epoch, loss: LT.loss(best.loss) })}`
      : words;
  };
  const finished = (data) =>
    banner(
      "good",
      "check",
      data.started && data.ended ? t("Finished in {time}.", { time: LT.duration(data.ended - data.started) }) : t("Finished."),
      filesWords(data),
    );

  /* ---- failed: what happened, what was saved, the one next thing to try ---- */

  const failed = (run, data) => {
    const problems = (run.problems && run.problems.length ? run.problems : data.problems).map((problem) => ({
      path: problem.path,
      message: LT.messageText(problem.message),
      fix: LT.messageText(problem.fix),
    }));
    const fix = LT.resumable(run)
      ? t("Resume it: the run goes on from its last state as if nothing had happened.")
      : t("Start it again; the saved files can be used.");
    const first = problems[0] || {
      path: "",
      message: t("The program that trained ended without a word: it was closed, or the computer ran out of memory."),
      fix,
    };
    const step = data.endedAt || (data.last && data.last.step) || run.step || 0;
    const total = run.total_steps || (data.plan && data.plan.total_steps) || 0;
    const where = [
      data.ended && LT.clockSeconds(data.ended),
      data.last && t("epoch {n}", { n: data.last.epoch }),
      total && LT.percent(step / total),
    ]
      .filter(Boolean)
      .join(" · ");
    const column = (sign, look, title, ...lines) => h("div", {}, LT.icon(sign, look), h("div", {}, h("b", {}, title), lines));
    return h("div.lt-failedcard", { "data-run": run.id },
      h("div.lt-failedhead", {},
        LT.icon("cross"),
        h("b", {}, headline(run.state, first, step, total)),
        h("span.lt-gap"),
        h("span", {}, where),
      ),
      h("div.lt-failedbody", {},
        column(
          "warning",
          "lt-bad",
          t("What happened"),
          problems.length ? problems.map((problem) => h("p", {}, problem.message)) : h("p", {}, first.message),
        ),
        column("save", "lt-good", t("What was saved"), savedLines(data, step, LT.stateOf(run))),
        column(
          "play",
          "lt-accent",
          t("What to try"),
          h("p", {}, first.fix || t("Copy the report and ask for help with it.")),
          nextSteps(run, first),
        ),
      ),
    );
  };
  const isOutOfMemory = (problem) => problem.path === "memory.gradient_checkpointing";
  /** A failed run's problem in a few words, for the pill. */
  LT.shortProblem = (run) => {
    const problem = (run.problems || [])[0];
    return problem ? (isOutOfMemory(problem) ? t("out of memory") : problem.message.split(/ \(|[.。（]/)[0]) : run.error || "";
  };
  const headline = (state, problem, step, total) => {
    if (isOutOfMemory(problem)) {
      return total ? t("Out of memory at step {step} of {total}", { step: LT.count(step), total: LT.count(total) }) : t("Out of memory");
    }
    if (state === "interrupted") return t("Interrupted at step {step} of {total}", { step: LT.count(step), total: LT.count(total) });
    return total
      ? t("Failed at step {step} of {total}", { step: LT.count(step), total: LT.count(total) })
      : t("Failed before the first step");
  };

  const savedLines = (data, step, state) => {
    const files = LT.numbered(data);
    const stateLine =
      state !== null &&
      h("p.lt-muted", {}, t("State to resume from: step {step}.", { step: LT.count(state) }), " ", lostWords(data, step - state));
    if (!files.length) return [h("p", {}, t("No file: the run ended before the first one.")), stateLine];
    const best = LT.bestOf(data);
    const file = best && files.find((save) => save.step === best.step);
    const epochs = files.map((save) => save.epoch);
    const range =
      files.length > 1
        ? t("{n} files, epochs {from} to {to}.", { n: files.length, from: Math.min(...epochs), to: Math.max(...epochs) })
        : t("1 file, epoch {from}.", { from: epochs[0] });
    return [
      h("p", {},
        range,
        file && [
          " ",
          ...LT.rich("Best so far: {file}, validation loss {loss}.", {
            file: h("b", {}, LT.fileName(file.path).replace(/\.safetensors$/, "")),
            loss: LT.loss(best.loss),
          }),
        ],
      ),
      stateLine || h("p.lt-muted", {}, lostWords(data, step - Math.max(...files.map((save) => save.step)))),
    ];
  };
  const lostWords = (data, lost) =>
    lost > 0 &&
    LT.tn(lost, "Lost: {n} step, {time} of training.", "Lost: {n} steps, {time} of training.", {
      time: LT.duration(lost * (data.seconds[data.seconds.length - 1] || 0)),
    });

  const startAgain = async (run, changes) => {
    try {
      const { config } = await LT.get(`runs/${encodeURIComponent(run.id)}/config`);
      LT.useConfig(config, changes);
      await LT.start(LT.config());
    } catch (error) {
      LT.showError(error);
    }
  };
  const nextSteps = (run, problem) => {
    const canResume = LT.resumable(run);
    const restart = (changes) => (canResume ? LT.resumeRun(run, { changes }) : startAgain(run, changes || {}));
    const plain = (kind) => LT.button(canResume ? t("Resume as it is") : t("Start again as it is"), { kind, onclick: () => restart() });
    if (isOutOfMemory(problem)) {
      return h("div.lt-answers", {},
        LT.button(canResume ? t("Turn it on and resume") : t("Turn it on and start again"), {
          kind: "primary",
          onclick: () => restart({ "memory.gradient_checkpointing": true }),
        }),
        plain(""),
      );
    }
    if (run.state === "interrupted" && canResume) {
      return h("div.lt-answers", {},
        LT.button(t("Resume"), { kind: "primary", icon: "play", onclick: () => LT.resumeRun(run) }),
        LT.button(t("Clone settings"), { onclick: () => LT.cloneRun(run) }),
      );
    }
    if (LT.options.has(problem.path)) {
      return h("div.lt-answers", {},
        LT.button(t("Change this setting"), {
          kind: "primary",
          onclick: async () => (await LT.cloneRun(run)) && LT.showOption(problem.path),
        }),
        plain(""),
      );
    }
    return h("div.lt-answers", {}, plain("primary"), LT.button(t("Clone settings"), { onclick: () => LT.cloneRun(run) }));
  };

  /* ---- the log ---- */

  const SHOWN = 400;
  LT.makeLog = () => {
    let open = false;
    let lastKey = "";
    const head = h("button.lt-loghead", { "aria-expanded": "false", onclick: () => { open = !open; lastKey = ""; repaint(); } });
    const copy = LT.button(t("Copy report"), { icon: "copy", kind: "small", onclick: () => LT.copyReport() });
    const list = h("div.lt-loglist");
    const foot = h("div.lt-hint", {}, t("Copy report: versions, settings and the last 100 events, without secrets."));
    const element = h("div.lt-card.lt-log", {}, h("div.lt-loghat", {}, head, copy), list, foot);
    let current = null;
    const repaint = () => current && paint(...current);
    const paint = (run, data) => {
      current = [run, data];
      const shown = open || run.state === "failed";
      const key = JSON.stringify([run.id, shown, data.log.length, data.last && data.last.step, run.state]);
      if (key === lastKey) return;
      const bottom = list.scrollTop + list.clientHeight > list.scrollHeight - 40;
      const toggled = lastKey === "" || !list.childElementCount;
      lastKey = key;
      const warnings = data.warnings ? LT.tn(data.warnings, "{n} warning", "{n} warnings") : run.state === "failed" ? "" : t("no warnings");
      head.setAttribute("aria-expanded", String(shown));
      LT.fill(
        head,
        LT.icon(shown ? "down" : "right"),
        h("b", {}, t("Log")),
        !shown && h("span.lt-muted.lt-clip.lt-nophone", {}, newest(data)),
        h("span.lt-gap"),
        h("span.lt-hint", {}, warnings),
      );
      copy.hidden = list.hidden = foot.hidden = !shown;
      element.classList.toggle("lt-open", shown);
      if (!shown) return;
      LT.fill(
        list,
        data.log
          .slice(-SHOWN)
          .map((line) =>
            h(`div.lt-logline.${line.look || "plain"}`, {},
              h("time", {}, LT.clockSeconds(line.time)),
              line.look === "warn"
                ? LT.icon("warning")
                : line.look === "bad"
                  ? LT.icon("cross")
                  : line.look === "change"
                    ? LT.icon("pencil")
                    : h("i"),
              h("span", {}, line.words),
            ),
          ),
        data.last &&
          !data.outcome &&
          h("div.lt-logline.quiet", {}, h("time", {}, LT.clockSeconds(data.last.time)), h("i"), h("span", {}, stepWords(data.last))),
      );
      if (bottom || toggled) list.scrollTop = list.scrollHeight;
    };
    return { element, paint };
  };
  const stepWords = (event) =>
    t("epoch {epoch}, step {step}: loss {loss}, learning rate {rate}", {
      epoch: event.epoch,
      step: LT.count(event.step),
      loss: LT.loss(event.loss),
      rate: LT.rate(event.lr),
    });
  const newest = (data) => {
    const line = data.log[data.log.length - 1];
    if (data.last && (!line || data.last.time >= line.time)) return `${LT.clockSeconds(data.last.time)}  ${stepWords(data.last)}`;
    return line ? `${LT.clockSeconds(line.time)}  ${line.words}` : "";
  };

  /* ---- the report ---- */

  /** Versions, settings and the last 100 events as text, for a bug report. */
  LT.copyReport = async () => {
    const run = LT.shownId();
    try {
      const report = await LT.getText(`report${run ? `?run=${encodeURIComponent(run)}` : ""}`);
      await LT.copy(`${report}\nbrowser     ${window.navigator.userAgent}\n`);
    } catch (error) {
      LT.showError(error);
    }
  };
})();
