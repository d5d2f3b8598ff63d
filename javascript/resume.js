/* Resuming a run that ended early, or training one for longer; and the notice about one that was interrupted. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /** A run's entry in the history: whether it has a saved state, and of which step. */
  LT.knownRun = (id) => (LT.cache.runs || []).find((run) => run.id === id) || null;
  /** The step of the state that the run can resume from, or null. */
  LT.stateOf = (run) => {
    const { state_step: step } = LT.knownRun(run.id) || run;
    return step === undefined || (LT.activeRun() && LT.activeRun().id === run.id) ? null : step;
  };
  LT.resumable = (run) => LT.stateOf(run) !== null;

  /** Goes on from the last state: `epochs` more than were planned, with `changes` of settings. True when it began. */
  LT.resumeRun = async (run, { epochs, changes } = {}) => {
    try {
      await LT.post(`runs/${encodeURIComponent(run.id)}/resume`, { ...(epochs ? { epochs } : {}), ...(changes ? { changes } : {}) });
    } catch (error) {
      LT.showError(error);
      return false;
    }
    LT.closePanel();
    LT.openRun(run.id);
    LT.askToNotify();
    await LT.poll();
    LT.goToStep("train");
    return true;
  };

  /** Asks how many more epochs a run that ended as planned should get. */
  LT.askMoreEpochs = async (run) => {
    const field = h("input.lt-input", { value: "5", inputmode: "numeric", autocomplete: "off", "aria-label": t("Further epochs") });
    let asked = "5";
    field.addEventListener("input", () => (asked = field.value.trim()));
    const words = h("div.lt-hint", {},
      t("The run goes on in the same place, from its last state. Its learning rate follows the schedule for the new length."),
    );
    const answer = await LT.ask(
      t("Train {name} for longer", { name: run.name }),
      h("div", {}, h("label.lt-inline.lt-moreepochs", {}, field, t("more epochs")), words),
      [{ label: t("Go on training"), kind: "primary", icon: "play" }, { label: t("Cancel") }],
    );
    const epochs = Math.round(Number(asked));
    return answer === 0 && epochs >= 1 && LT.resumeRun(run, { epochs });
  };

  /* ---- an interrupted run: shown on every step until it is answered ---- */

  const leave = (run) => {
    LT.state.left = { ...(LT.state.left || {}), [run.id]: run.step };
    LT.saveState();
    LT.emit("runs");
  };
  const broken = () => {
    const newest = (LT.cache.runs || []).find((run) => run.kind !== "grid");
    if (!newest || newest.state !== "interrupted" || LT.activeRun()) return null;
    if ((LT.state.left || {})[newest.id] === newest.step) return null;
    return LT.state.step === "train" && LT.shownId() === newest.id ? null : newest;
  };
  LT.buildBroken = () => {
    const strip = h("div.lt-broken-off", { role: "status" });
    const paint = () => {
      const run = broken();
      strip.hidden = !run;
      const values = run && { name: run.name, step: LT.count(run.step), total: LT.count(run.total_steps) };
      LT.fill(strip, run && [
        LT.icon("warning"), h("span", {}, t("The run {name} was interrupted at step {step} of {total}.", values)), h("span.lt-gap"),
        LT.resumable(run) && LT.button(t("Resume"), { kind: "small", icon: "play", onclick: () => LT.resumeRun(run) }),
        LT.button(t("Show it"), { kind: "small", onclick: () => { LT.openRun(run.id); LT.goToStep("train"); } }),
        LT.button(t("Leave it"), { kind: "small.plain", onclick: () => leave(run) })]);
      LT.root().style.setProperty("--lt-strip", `${strip.offsetHeight}px`); // the steps fill the window below it
    };
    ["runs", "status", "step", "run"].forEach((name) => LT.on(name, paint));
    paint();
    return strip;
  };
})();
