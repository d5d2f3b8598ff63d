/* Polls the server's status every second while the tab is visible; a few times a minute for the banner on txt2img. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const SECONDS_HIDDEN = 15; // seconds between two looks while somebody looks at txt2img, or a run goes on that nobody sees
  const SECONDS_HOST_PAGE = 4; // seconds between two looks while a run goes on and somebody looks at txt2img
  const SECONDS_OFFLINE = 5; // seconds between two looks while the server does not answer
  let elapsed = 0;
  let polling = false;
  let failures = 0;
  let refusal = "";

  const client = () => {
    try {
      const id = window.sessionStorage.getItem("lora_trainer:client") || Math.random().toString(36).slice(2, 12);
      window.sessionStorage.setItem("lora_trainer:client", id);
      return id;
    } catch (error) {
      return "unnamed";
    }
  };

  const ACTIVE_STATES = ["planning", "caching", "training", "paused", "sampling", "saving", "stopping"];
  /** The run that is going on now, or null. */
  LT.activeRun = () => {
    const run = LT.cache.status && LT.cache.status.run;
    return run && ACTIVE_STATES.includes(run.state) ? run : null;
  };

  /** Polls the status now. */
  LT.poll = async () => {
    if (polling) return;
    polling = true;
    try {
      const version = LT.cache.status ? `&seen=${encodeURIComponent(LT.cache.status.version)}` : "";
      const status = await LT.get(`status?client=${client()}${version}`);
      const recovered = failures > 0;
      failures = 0;
      refusal = "";
      if ("host" in status) {
        const before = LT.cache.status;
        LT.cache.status = status;
        LT.emit("status", { before });
      } else if (recovered) {
        LT.emit("status", { before: LT.cache.status });
      }
    } catch (error) {
      failures += 1;
      refusal = [401, 403].includes(error.status) ? error.message : "";
      LT.emit("silent", error);
    } finally {
      polling = false;
    }
  };
  LT.isOffline = () => failures > 1;
  /** Why the server refuses this page, with the remedy; "" where it does not. */
  LT.refusal = () => refusal;

  /** The host's page on which the banner stands. */
  const hostPage = () => document.getElementById("tab_txt2img");
  const isHostPageVisible = () => !document.hidden && hostPage() !== null && hostPage().offsetParent !== null;

  const tick = () => {
    elapsed += 1;
    if (LT.isVisible()) {
      if (!failures || elapsed >= SECONDS_OFFLINE) {
        elapsed = 0;
        LT.poll();
      }
      LT.emit("tick");
    } else {
      const hostPageVisible = isHostPageVisible();
      if (elapsed >= (hostPageVisible && LT.activeRun() ? SECONDS_HOST_PAGE : SECONDS_HIDDEN) && (hostPageVisible || LT.activeRun())) {
        elapsed = 0;
        LT.poll();
      }
    }
  };

  LT.startPolling = () => {
    LT.poll();
    window.setInterval(tick, 1000);
    const look = () => {
      LT.poll();
      LT.emit("seen"); // files may have changed while nobody looked
    };
    document.addEventListener("visibilitychange", () => LT.isVisible() && look());
    const observer = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && LT.poll());
    for (const element of [LT.root(), hostPage()]) if (element) observer.observe(element);
  };
})();
