/* The runs of this host: which one is shown, and what can be done with it. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /** ID of the run that Train and Compare show; null: a new one is being prepared. */
  LT.shownId = () => {
    if (LT.state.run === "new") return null;
    if (LT.state.run) return LT.state.run;
    const run = LT.cache.status && LT.cache.status.run;
    if (run && run.kind === "rate") return ((LT.cache.runs || [])[0] || {}).id || null;
    return run ? run.of || run.id : null;
  };
  /** That run's live status, else its entry in the list. */
  LT.shownRun = () => {
    const id = LT.shownId();
    if (!id) return null;
    const live = LT.cache.status && LT.cache.status.run;
    if (live && live.id === id) return live;
    return (LT.cache.runs || []).find((run) => run.id === id) || { id, name: id, state: "idle" };
  };

  LT.openRun = (id) => {
    LT.state.run = id;
    LT.saveState();
    LT.emit("run", id);
  };

  LT.loadRuns = async () => {
    try {
      LT.cache.runs = await LT.get("runs");
    } catch (error) {
      LT.cache.runs = LT.cache.runs || [];
    }
    if (
      LT.state.run &&
      LT.state.run !== "new" &&
      !LT.cache.runs.some((run) => run.id === LT.state.run) &&
      !(LT.activeRun() && LT.activeRun().id === LT.state.run)
    ) {
      LT.openRun(null); // deleted elsewhere
    }
    LT.emit("runs");
  };

  LT.openRuns = async (owner) => {
    const list = h("div.lt-runs");
    const panel = LT.panel(owner, list, { right: true, wide: true });
    if (!panel) return;
    paintRuns(list);
    await LT.loadRuns();
    paintRuns(list);
  };

  const paintRuns = (list) => {
    const shown = LT.shownId();
    const runs = (LT.cache.runs || []).filter((run) => run.kind !== "grid");
    const fresh = h(
      "button.lt-run",
      {
        "aria-current": shown === null,
        onclick: () => {
          LT.closePanel();
          LT.openRun("new");
          LT.goToStep("pictures");
        },
      },
      LT.icon("idle"),
      h("span.lt-runname", {}, h("b", {}, t("New run")), h("span.lt-muted", {}, t("with the pictures and settings of this page"))),
    );
    LT.fill(
      list,
      fresh,
      runs.length > 0 && h("div.lt-runhead", {}, t("Runs, newest first")),
      runs.map((run) => runLine(liveOr(run), shown, list)),
    );
    if (LT.cache.runs === null) list.append(h("div.lt-muted.lt-pad", {}, t("Looking…")));
  };

  /** The entry of a run that is going on, with the state and step that the header shows. */
  const liveOr = (run) => {
    const live = LT.activeRun();
    return live && live.id === run.id ? { ...run, state: live.state, step: LT.stepOf(live), total_steps: live.total_steps } : run;
  };
  const runLine = (run, shown, list) => {
    const look = LT.STATES[run.state] || LT.STATES.idle;
    const facts = [
      LT.stateWord(run.state),
      run.started && LT.date(run.started),
      run.total_steps && t("step {step} of {total}", { step: LT.count(run.step), total: LT.count(run.total_steps) }),
      run.best_epoch && t("best: epoch {n}", { n: run.best_epoch }),
    ].filter(Boolean);
    const open = () => {
      LT.closePanel();
      LT.openRun(run.id);
      LT.goToStep(["pictures", "captions", "settings"].includes(LT.state.step) ? "train" : LT.state.step);
    };
    const live = LT.activeRun() && LT.activeRun().id === run.id;
    const act = (label, work, kind = "small") => LT.button(label, { kind, onclick: work });
    return h("div.lt-runline", { "aria-current": run.id === shown, "data-run": run.id },
      h("button.lt-run", { onclick: open },
        LT.icon(look.sign, `lt-${look.look}`),
        h("span.lt-runname", {}, h("b", {}, run.name), h("span.lt-muted", {}, facts.join(" · "))),
      ),
      h("span.lt-runacts", {},
        !LT.activeRun() &&
          LT.resumable(run) &&
          (run.state === "finished" ? act(t("More epochs…"), () => LT.askMoreEpochs(run)) : act(t("Resume"), () => LT.resumeRun(run))),
        act(t("Clone settings"), () => LT.cloneRun(run)),
        act(t("Rename…"), () => rename(run, list)),
        !live && act(t("Delete…"), () => remove(run, list), "small.bad"),
      ),
    );
  };

  /** Takes a run's settings into the form. */
  LT.cloneRun = async (run, changes = {}) => {
    try {
      const { config, notes = [] } = await LT.get(`runs/${encodeURIComponent(run.id)}/config`);
      LT.useConfig(config, changes);
      notes.forEach((note) => LT.toast(note));
    } catch (error) {
      LT.showError(error);
      return false;
    }
    LT.closePanel();
    LT.openRun("new");
    LT.goToStep("settings");
    LT.toast(t("The settings of {name} stand in the form.", { name: run.name }), { kind: "good" });
    return true;
  };

  const rename = async (run, list) => {
    const field = h("input.lt-input", { value: run.name, "aria-label": t("New name") });
    let typed = run.name;
    field.addEventListener("input", () => (typed = field.value.trim()));
    const answer = await LT.ask(
      t("Rename {name}", { name: run.name }),
      h("div", {}, field, h("div.lt-hint", {}, t("The LoRA files keep their names."))),
      [{ label: t("Rename"), kind: "primary" }, { label: t("Cancel") }],
    );
    if (answer !== 0 || !typed || typed === run.name) return;
    try {
      await LT.post(`runs/${encodeURIComponent(run.id)}/name`, { name: typed });
    } catch (error) {
      LT.showError(error);
    }
    await LT.loadRuns();
    paintRuns(list);
  };

  const remove = async (run, list) => {
    const what = [
      t("Deletes the run's folder: its settings, log, previews and grid ({size}).", { size: LT.megabytes(run.mb || 0) }),
      run.files > 0 &&
        LT.tn(
          run.files,
          "Its {n} LoRA file stays where it is, unless you delete it too.",
          "Its {n} LoRA files stay where they are, unless you delete them too.",
        ),
    ];
    const answers = [{ label: t("Delete the run"), kind: "bad" }, { label: t("Keep it") }];
    if (run.files) answers.splice(1, 0, { label: t("Delete it and its files"), kind: "bad" });
    const answer = await LT.ask(t("Delete {name}?", { name: run.name }), what.filter(Boolean).map((line) => h("p", {}, line)), answers);
    if (answer === null || answers[answer].kind !== "bad") return;
    try {
      await LT.remove(`runs/${encodeURIComponent(run.id)}${answer === 1 ? "?weights=1" : ""}`);
      if (LT.state.run === run.id) LT.openRun(null);
    } catch (error) {
      LT.showError(error);
    }
    await LT.loadRuns();
    paintRuns(list);
  };
})();
