/* One snapshot of the server each second while the tab can be seen; a rare look while a run goes on and it cannot. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const RARELY = 15; // seconds between two looks while nobody looks at the tab
  const SLOW = 5; // seconds between two looks while the server does not answer
  let waited = 0;
  let asking = false;
  let silent = 0;

  const client = () => {
    try {
      const kept = window.sessionStorage.getItem("lora_trainer:client") || Math.random().toString(36).slice(2, 12);
      window.sessionStorage.setItem("lora_trainer:client", kept);
      return kept;
    } catch (error) {
      return "unnamed";
    }
  };

  const ACTIVE = ["planning", "caching", "training", "paused", "sampling", "saving", "stopping"];
  /** The run that is going on now, or null. */
  LT.active = () => {
    const run = LT.seen.status && LT.seen.status.run;
    return run && ACTIVE.includes(run.state) ? run : null;
  };

  /** Asks for the snapshot now. */
  LT.look = async () => {
    if (asking) return;
    asking = true;
    try {
      const version = LT.seen.status ? `&seen=${encodeURIComponent(LT.seen.status.version)}` : "";
      const answer = await LT.get(`status?client=${client()}${version}`);
      const back = silent > 0;
      silent = 0;
      if ("host" in answer) {
        const before = LT.seen.status;
        LT.seen.status = answer;
        LT.tell("status", { before });
      } else if (back) {
        LT.tell("status", { before: LT.seen.status });
      }
    } catch (error) {
      silent += 1;
      LT.tell("silent", error);
    } finally {
      asking = false;
    }
  };
  LT.isSilent = () => silent > 1;

  const tick = () => {
    waited += 1;
    if (LT.visible()) {
      if (!silent || waited >= SLOW) {
        waited = 0;
        LT.look();
      }
      LT.tell("tick");
    } else if (waited >= RARELY && LT.active()) {
      waited = 0;
      LT.look();
    }
  };

  LT.startPolling = () => {
    LT.look();
    window.setInterval(tick, 1000);
    document.addEventListener("visibilitychange", () => LT.visible() && LT.look());
    new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && LT.look()).observe(LT.root());
  };
})();
