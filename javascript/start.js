/* Builds the tab once its root element is on the page; does nothing where that never appears. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const PATIENCE = 120; // seconds that a host may take to draw its page
  let begun = false;

  const build = async (root) => {
    begun = true;
    const prose = root.closest(".prose"); // how Gradio dresses the text of an HTML component: margins and colours that are not ours
    if (prose) prose.classList.remove("prose");
    root.textContent = "";
    try {
      await LT.loadWords();
      await Promise.all([LT.loadOptions(), LT.poll()]);
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      begun = false;
      root.textContent = error.message;
      window.setTimeout(() => window.requestAnimationFrame(begin), 3000); // the server is still starting
      return;
    }
    LT.buildFrame(root);
    LT.startFields();
    LT.buildPictures(LT.panels.pictures);
    LT.buildCaptions(LT.panels.captions);
    LT.buildSettings(LT.panels.settings);
    LT.buildTrain(LT.panels.train);
    LT.buildCompare(LT.panels.compare);
    LT.startKeys();
    LT.startBanner();
    LT.startPolling();
    fit(root);
    window.addEventListener("resize", () => fit(root));
    LT.on("status", () => fit(root));
    await LT.readPictures();
    LT.readPlan();
    LT.loadRuns();
    LT.emit(`show ${LT.state.step}`);
    root.dataset.ready = "true";
  };

  /** The steps fill the window below the host's own bar. */
  const fit = (root) => {
    if (root.offsetParent === null) return;
    const top = Math.max(0, root.getBoundingClientRect().top + window.scrollY);
    root.style.setProperty("--lt-top", `${Math.round(Math.min(top, 240))}px`);
  };

  const begin = () => {
    const root = LT.root();
    if (!root || begun) return Boolean(root);
    build(root);
    return true;
  };

  let watching = false;
  const watch = () => {
    if (watching) return;
    watching = true;
    if (begin()) return;
    const watcher = new MutationObserver(() => begin() && watcher.disconnect());
    watcher.observe(document.documentElement, { childList: true, subtree: true });
    window.setTimeout(() => watcher.disconnect(), PATIENCE * 1000);
  };
  // a deferred script runs before those behind it, perhaps with the place already on the page: only these events come after all of them
  if (document.readyState === "complete") watch();
  else {
    document.addEventListener("DOMContentLoaded", watch, { once: true });
    window.addEventListener("load", watch, { once: true });
  }
})();
