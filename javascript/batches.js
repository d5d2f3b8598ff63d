/* The first batches as they will be trained: cut, mirrored, masked, with their captions. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  LT.openBatches = async () => {
    try {
      const { png } = await LT.post("batches", { config: LT.config() });
      const sheet = h("img", { src: `data:image/png;base64,${png}`, alt: t("The first batches as they will be trained") });
      await LT.ask(t("The first batches as they will be trained"), h("div.lt-sheet", {}, sheet), [{ label: t("Close"), kind: "primary" }]);
    } catch (error) {
      LT.showError(error);
    }
  };
})();
