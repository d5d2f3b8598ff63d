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
      await loadTexts();
    } catch (error) {
      if (!(error instanceof LT.RequestError)) throw error;
      begun = false;
      root.textContent = error.message;
      window.setTimeout(() => window.requestAnimationFrame(begin), 3000); // the server is still starting
      return;
    }
    LT.startBanner();
    LT.on("status", () => fit(root));
    before = LT.listeners();
    draw(root);
    LT.startKeys();
    LT.startPolling();
    window.addEventListener("resize", () => fit(root));
    await readAll();
    root.dataset.ready = "true";
  };

  let before = null; // what listened before the steps were drawn
  const loadTexts = async () => {
    await LT.loadWords();
    await Promise.all([LT.loadOptions(), LT.poll()]);
  };
  const draw = (root) => {
    LT.buildFrame(root);
    LT.startFields();
    LT.buildPictures(LT.panels.pictures);
    LT.buildCaptions(LT.panels.captions);
    LT.buildSettings(LT.panels.settings);
    LT.buildTrain(LT.panels.train);
    LT.buildCompare(LT.panels.compare);
    fit(root);
  };
  const readAll = async () => {
    await LT.readPictures();
    LT.readPlan();
    LT.loadRuns();
    LT.emit(`show ${LT.state.step}`);
  };

  /** Draws the tab anew in that language, which this browser keeps. What stands in the form stays. */
  LT.useLanguage = async (language) => {
    const root = LT.root();
    LT.state.language = language;
    LT.saveState();
    const seen = LT.cache.status;
    try {
      await LT.loadWords();
      await LT.loadOptions();
      LT.cache.status = null; // asks for all of it, in the new language
      await LT.poll();
    } catch (error) {
      return LT.showError(error);
    }
    LT.cache.status = LT.cache.status || seen;
    Object.assign(LT.cache, { pictures: null, captions: null, plan: null, planned: null, runs: null }); // hold the server's sentences
    LT.listeners(before);
    draw(root);
    await readAll();
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
