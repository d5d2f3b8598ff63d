/* The tab's one global object: its event listeners, the cached server responses, and the state stored in this browser.
   The truth about runs is the server's; here stands only what the user has entered. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const STORAGE_KEY = "lora_trainer:1";

  LT.STEPS = ["pictures", "captions", "settings", "train", "compare"];

  const defaultState = () => ({
    step: "pictures",
    values: {}, // "network.dim" -> what stands in its field; absent: the default
    typed: {}, // "network.dim" -> true where the user typed it (not the wizard)
    subject: "character",
    visited: {}, // step -> the folder with which it was visited last
    suggested: {}, // folder -> "used", "refused" or "kept" (settings of a run or file came in): what became of the suggestions
    looked: {}, // folder -> {key: true}: pictures that the user found to be OK
    chosen: {}, // folder -> {out, crops}: what was left out and cropped in folders that are not shown now
    thumbs: 136,
    language: "", // "en" or "zh_CN" where the user chose one; "": the host's or the browser's
    all: false, // Settings: all options instead of the basic ones
    run: null, // the run that steps 4 and 5 show; null: the current or the newest
    pictureSeconds: 0, // how long a picture of a grid took here
    grid: {}, // run -> {weights, epochs, prompt}
  });

  LT.state = defaultState();
  try {
    Object.assign(LT.state, JSON.parse(window.localStorage.getItem(STORAGE_KEY) || "{}"));
  } catch (error) {
    LT.state = defaultState(); // a browser that keeps nothing, or keeps it broken, begins anew
  }

  const isSecret = (path) => Boolean(LT.options && LT.options.has(path) && LT.options.get(path).kind === "secret");
  let saveTimer = 0;
  /** Saves the state in this browser, after a short delay. */
  LT.saveState = () => {
    window.clearTimeout(saveTimer);
    saveTimer = window.setTimeout(saveNow, 150);
  };
  const saveNow = () => {
    window.clearTimeout(saveTimer);
    saveTimer = 0;
    try {
      window.localStorage.setItem(STORAGE_KEY, JSON.stringify(LT.state, (key, value) => (isSecret(key) ? undefined : value)));
    } catch (error) {
      /* storage full or forbidden: the page works without */
    }
  };

  window.addEventListener("pagehide", () => saveTimer && saveNow());

  const listeners = {};
  /** What listens now; with such a snapshot, listens again to that alone. */
  LT.listeners = (again) => {
    if (again) Object.keys(listeners).forEach((name) => (listeners[name] = [...(again[name] || [])]));
    return Object.fromEntries(Object.entries(listeners).map(([name, all]) => [name, [...all]]));
  };
  /** Calls `listen(data)` at each `LT.emit(name, data)`. */
  LT.on = (name, listener) => (listeners[name] = listeners[name] || []).push(listener);
  LT.emit = (name, data) => (listeners[name] || []).forEach((listener) => listener(data));

  /** Runs `work` once there was no call for `wait` milliseconds. */
  LT.debounce = (work, wait) => {
    let timer = 0;
    return (...args) => {
      window.clearTimeout(timer);
      timer = window.setTimeout(() => work(...args), wait);
    };
  };

  /** The server's latest responses; `null` before the first. */
  LT.cache = { status: null, options: null, runs: null, pictures: null, captions: null, plan: null, planned: null, modelSize: 0 };

  /** The tab's element, or null where the host does not show it. */
  LT.root = () => document.getElementById("lora_trainer_root") || inShadow();
  const inShadow = () => {
    const app = document.querySelector("gradio-app");
    return app && app.shadowRoot ? app.shadowRoot.getElementById("lora_trainer_root") : null;
  };
  /** Whether the tab is visible now. */
  LT.isVisible = () => {
    const root = LT.root();
    return Boolean(root && root.offsetParent !== null && document.visibilityState === "visible");
  };

  LT.goToStep = (step) => {
    if (LT.state.step === step) return;
    LT.state.step = step;
    LT.saveState();
    LT.emit("step", step);
  };
})();
