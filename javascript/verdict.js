/* Step 4: what a run's validation loss means, in one sentence under the chart; and the run's numerical health. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /** {look, words} of a run's validation: the sentence under the chart. */
  LT.verdictOf = (data, live) => {
    const validations = data.validations.filter((one) => one.step > 0);
    const best = LT.bestOf(data);
    if (!validations.length) {
      return data.steps.length > 20
        ? { look: "calm", words: t("Without validation pictures the loss says little: compare the previews, and the files in step 5.") }
        : { look: "calm", words: t("Too few points to say.") };
    }
    const byEpoch = [...new Map(validations.map((one) => [one.epoch, one])).values()];
    const since = byEpoch.filter((one) => one.epoch > best.epoch).length;
    const values = { epoch: best.epoch, loss: LT.loss(best.loss), n: since };
    if (!live) {
      return {
        look: "good",
        words:
          since >= 3
            ? t("Validation loss was lowest at epoch {epoch} ({loss}) and rose after it: later files may be overfitted.", values)
            : t("The best file by validation loss is epoch {epoch} ({loss}).", values),
      };
    }
    if (byEpoch.length < 3) return { look: "calm", words: t("Too few points to say.") };
    if (since === 0) {
      return {
        look: "good",
        words: t("Validation loss is still falling: the best file so far is epoch {epoch} ({loss}). Let it run.", values),
      };
    }
    return {
      look: since >= 3 ? "warn" : "calm",
      words: LT.tn(
        since,
        "Validation loss has not fallen for {n} epoch: the best file so far is epoch {epoch} ({loss}).",
        "Validation loss has not fallen for {n} epochs: the best file so far is epoch {epoch} ({loss}).",
        values,
      ),
    };
  };

  /** A run's numerical health, where there is something to report: skipped steps, the fp16 loss scale, changes for lack of memory. */
  LT.healthOf = (data, live) => {
    const { skipped = 0, loss_scale: scale = 0 } = data.last || {};
    const spared = data.changes.filter((change) => change.path.startsWith("memory."));
    const one = (look, sign, words, title) => h("span", { title }, LT.icon(sign, look), words);
    return [
      data.warned && one("lt-warn", "warning", t("step {step}: {words}", { step: LT.count(data.warned.step), words: data.warned.words })),
      skipped > 0 &&
        one(
          "lt-warn",
          "warning",
          LT.tn(
            skipped,
            "{n} step skipped: its gradient was not a finite number",
            "{n} steps skipped: their gradients were not finite numbers",
          ),
          t("Now and then is normal with fp16. Many in a row end the run with a diagnosis."),
        ),
      spared.length > 0 &&
        one(
          "lt-warn",
          "chip",
          LT.tn(spared.length, "memory ran short: {n} setting was changed", "memory ran short: {n} settings were changed"),
          spared.map((change) => t("{setting}: {old} → {new}", LT.changeWords(change))).join("\n"),
        ),
      live &&
        scale > 0 &&
        one(
          "lt-muted",
          "check",
          t("loss scale {n}", { n: LT.count(scale) }),
          t(
            "fp16 multiplies the loss by this, so that small gradients are not lost. It halves after a skipped step, and grows again.",
          ),
        ),
    ].filter(Boolean);
  };
})();
