/* The network's fields: what a type is good for, how many layers are trained, how many of them a pattern matches, the file's size. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const planned = () => (LT.cache.plan && LT.cache.plan.network) || null;
  const partName = (part) => ({ unet: t("U-Net"), text_encoder: t("text encoder") })[part] || part;

  /** "192 of the U-Net, 72 of the text encoder". */
  const layersOf = (network) =>
    Object.entries(network.layers)
      .filter(([, count]) => count)
      .map(([part, count]) => `${partName(part)} ${LT.count(count)}`)
      .join(", ");

  const size = () => {
    const network = planned();
    return network
      ? t("{size} a file ({layers} layers)", {
          size: LT.megabytes(network.file_bytes / 2 ** 20),
          layers: LT.count(Object.values(network.layers).reduce((sum, count) => sum + count, 0)),
        })
      : "";
  };

  const hits = (option) => {
    const network = planned();
    const patternHits = (network && network.patterns && network.patterns[option]) || {};
    return Object.entries(patternHits).map(([pattern, count]) =>
      h("div", { class: count ? "" : "lt-note" },
        h("code", {}, pattern),
        " ",
        count ? LT.tn(count, "hits {n} layer", "hits {n} layers") : t("hits no layer"),
      ),
    );
  };

  const HINTS = {
    "network.type": () => {
      const about = (LT.options.get("network.type").about || {})[LT.value("network.type")] || "";
      return [about, about && size() && " · ", size()];
    },
    "network.dim": () => size(),
    "network.preset": () => (planned() ? t("Trained layers: {layers}", { layers: layersOf(planned()) }) : ""),
    "network.include": () => hits("include"),
    "network.exclude": () => hits("exclude"),
  };

  /** The hint below a field of the network, from the latest plan; "" for other fields. */
  LT.networkHint = (path) => (HINTS[path] ? HINTS[path]() : "");
})();
