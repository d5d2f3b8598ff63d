/* Below the U-Net's learning rate: a search for one on the user's own pictures, by a short run that is discarded. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const REFERENCE_OPTIMIZER = "AdamW"; // whose rates are found
  let result = null; // {unet_lr, text_encoder_lr, sure}
  let searchId = "";

  const searchRun = () => {
    const run = LT.cache.status && LT.cache.status.run;
    return run && run.kind === "rate" ? run : null;
  };
  /** Whether the active run only searches for a learning rate. */
  LT.isLrSearch = (run = LT.activeRun()) => Boolean(run && run.kind === "rate");

  const startSearch = async () => {
    result = null;
    try {
      await LT.post("rate", { config: LT.config() });
      searchId = ""; // the next search may have the name of the last one
      await LT.poll();
    } catch (error) {
      LT.showError(error);
    }
    LT.paintFields();
  };

  const readResult = async () => {
    const run = searchRun();
    if (!run || LT.activeRun() || searchId === run.id) return;
    searchId = run.id;
    if (run.state === "finished") result = await LT.get(`runs/${encodeURIComponent(run.id)}/rate`).catch(() => null); // deleted meanwhile
    if (run.state === "failed" && run.error) LT.toast(run.error, { kind: "bad" });
    LT.paintFields();
  };
  LT.on("status", readResult);

  const chosenType = () => LT.value("optimizer.type");
  /** The facts of an optimizer; none for one given by its dotted name. */
  const factsOf = (type) => ((LT.options.get("optimizer.type") || {}).facts || {})[type] || {};

  /** Scales a rate found for AdamW to the chosen optimizer, by the ratio of their usual rates. */
  const scaledRate = (rate) => {
    const [chosen, usual] = [factsOf(chosenType()).hint, factsOf(REFERENCE_OPTIMIZER).hint];
    return chosen && usual ? Number(((rate * chosen) / usual).toPrecision(2)) : rate;
  };

  const resultLine = () => {
    const rates = { "optimizer.unet_lr": scaledRate(result.unet_lr), "optimizer.text_encoder_lr": scaledRate(result.text_encoder_lr) };
    const parts = Object.entries(rates).filter(([path, rate]) => rate > 0 && LT.value(path) !== 0);
    const set = () => LT.set(Object.fromEntries(parts));
    return [
      t("Found on these pictures: {rates}.", { rates: parts.map(([, rate]) => LT.rate(rate)).join(" / ") }),
      !result.sure && [" ", t("It was still growing: take it as the least.")],
      parts.some(([path, rate]) => LT.value(path) !== rate) && [" ", h("button.lt-link", { onclick: set }, t("Set it"))],
      " ",
    ];
  };

  /** The line below the field. */
  LT.rateHint = () => {
    const run = LT.activeRun();
    if (factsOf(chosenType()).finds) return "";
    if (LT.isLrSearch(run)) {
      const stop = h("button.lt-link", { onclick: () => LT.command(run, "stop-discard") }, t("Stop"));
      return [t("Looking for a rate: step {done} of {all}", { done: run.step, all: run.total_steps || "…" }), " ", stop];
    }
    const why = t("Trains 100 steps on your pictures and throws them away: takes about as long as 100 steps of a run.");
    const link = h("button.lt-link", { title: why, disabled: Boolean(run) || !LT.source(), onclick: startSearch },
      result ? t("Look again") : t("Find it on these pictures"),
    );
    return [result && resultLine(), link];
  };
})();
