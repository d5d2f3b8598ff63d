/* Step 5: a grid without a suggestion says what it looks like, with the one button that makes the next run. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const LOW_WEIGHTS = "0.1 0.2 0.3 0.4 0.5";
  const RATES = ["learning_rate", "unet_lr", "text_encoder_lr"];

  const rateChanges = (config, factor) => {
    const optimizer = config.optimizer || {};
    const base = { learning_rate: LT.defaultOf("optimizer.learning_rate"), ...optimizer };
    return Object.fromEntries(
      RATES.filter((name) => base[name] > 0).map((name) => [`optimizer.${name}`, Number((base[name] * factor).toPrecision(3))]),
    );
  };
  const lengthChanges = (config, factor) => {
    const { max_train_epochs: epochs, max_train_steps: steps } = config.steps || {};
    return !epochs && steps
      ? { "steps.max_train_steps": Math.max(1, Math.round(steps * factor)) }
      : { "steps.max_train_epochs": Math.max(1, Math.round((epochs || 10) * factor)) };
  };

  /** Starts a new run with a run's settings and `changes`; a taken name becomes the one that the server proposes. */
  LT.startNew = async (run, makeChanges) => {
    try {
      const { config } = await LT.get(`runs/${encodeURIComponent(run.id)}/config`);
      const undo = LT.undoable(() => LT.useConfig(config, makeChanges(config)));
      await LT.readPlan();
      const taken = LT.problems().find((problem) => problem.proposal);
      if (taken) LT.set({ "save.output_name": taken.proposal });
      LT.toast(t("The settings of {name} stand in the form.", { name: run.name }), { action: { label: t("Undo"), act: undo } });
      if (!(await LT.start(LT.config()))) LT.goToStep("settings");
    } catch (error) {
      LT.showError(error);
    }
  };

  /** The button for a diagnosis: {label, act}. */
  const remedy = (diagnosis, run, drawWeights) => {
    const config = LT.runData(run.id).config || {};
    const finds = LT.findsRate(config.optimizer);
    const epochs = (LT.runData(run.id).plan || {}).epochs || 10;
    if (diagnosis.remedy === "captions") {
      return { label: t("Look at the captions"), act: async () => (await LT.cloneRun(run)) && LT.goToStep("captions") };
    }
    if (diagnosis.remedy === "lower-weights") {
      return { label: t("Draw the weights {weights}", { weights: LOW_WEIGHTS }), act: () => drawWeights(LOW_WEIGHTS) };
    }
    if (diagnosis.remedy === "lower-rate") {
      return finds
        ? { label: t("New run, half as long"), act: () => LT.startNew(run, (one) => lengthChanges(one, 0.5)) }
        : { label: t("New run at half the learning rate"), act: () => LT.startNew(run, (one) => rateChanges(one, 0.5)) };
    }
    if (diagnosis.remedy === "higher-rate" && !finds) {
      return { label: t("New run at twice the learning rate"), act: () => LT.startNew(run, (one) => rateChanges(one, 2)) };
    }
    return LT.resumable(run)
      ? { label: LT.tn(epochs, "Train {n} more epoch", "Train {n} more epochs"), act: () => LT.resumeRun(run, { epochs }) }
      : { label: t("New run, twice as long"), act: () => LT.startNew(run, (one) => lengthChanges(one, 2)) };
  };

  LT.diagnosisLines = (view, drawWeights) => {
    const { diagnosis } = view.grid;
    const run = LT.shownRun();
    if (!diagnosis || !run) return null;
    const { label, act } = remedy(diagnosis, run, drawWeights);
    const busy = LT.activeRun();
    return [
      h("p", {}, LT.messageText(diagnosis.because)),
      LT.button(label, {
        kind: "primary",
        disabled: Boolean(busy),
        title: busy ? t("{name} is being trained: pause or wait.", { name: busy.name }) : "",
        onclick: act,
      }),
    ];
  };
})();
