/* One snapshot of the server each second while the tab can be seen; a few a minute for the banner on the host's txt2img page. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const RARELY = 15; // seconds between two looks while somebody looks at txt2img, or a run goes on that nobody sees
  const NOW_AND_THEN = 4; // seconds between two looks while a run goes on and somebody looks at txt2img
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

  /** The host's page on which the banner stands. */
  const beside = () => document.getElementById("tab_txt2img");
  const besideShown = () => !document.hidden && beside() !== null && beside().offsetParent !== null;

  const tick = () => {
    waited += 1;
    if (LT.visible()) {
      if (!silent || waited >= SLOW) {
        waited = 0;
        LT.look();
      }
      LT.tell("tick");
    } else {
      const watched = besideShown();
      if (waited >= (watched && LT.active() ? NOW_AND_THEN : RARELY) && (watched || LT.active())) {
        waited = 0;
        LT.look();
      }
    }
  };

  LT.startPolling = () => {
    LT.look();
    window.setInterval(tick, 1000);
    document.addEventListener("visibilitychange", () => LT.visible() && LT.look());
    const observer = new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && LT.look());
    for (const place of [LT.root(), beside()]) if (place) observer.observe(place);
  };
})();
