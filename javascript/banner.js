/* A banner on the host's txt2img page: training is using the model, and one click pauses it and generates.
   The only thing of ours outside the tab; its looks stand here, because style.css stays inside. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const PATIENCE = 60; // seconds that a pause may take to come
  let banner = null;
  let pausing = false;

  const place = () => document.getElementById("tab_txt2img");
  const looks = {
    display: "flex", "flex-wrap": "wrap", gap: "8px 16px", "align-items": "center", margin: "0 0 8px", padding: "8px 14px",
    border: "1px solid var(--primary-300, #fdba74)", "border-radius": "8px", color: "var(--body-text-color, #1f2937)",
  };
  const button = (label, act, disabled) => {
    const style = {
      padding: "4px 12px",
      border: "1px solid var(--border-color-primary, #d1d5db)",
      "border-radius": "8px",
      cursor: "pointer",
      color: "inherit",
      background: "none",
    };
    return h("button", { style, onclick: act, disabled }, label);
  };

  const paint = () => {
    const tab = place();
    const run = LT.activeRun();
    if (!tab || !run || run.own_process) { // a process of its own leaves the host's model to everybody
      if (banner) banner.remove();
      banner = null;
      return;
    }
    if (!banner || !banner.isConnected) {
      banner = h("div", { id: "lora_trainer_banner", role: "status", style: looks });
      tab.prepend(banner);
    }
    const waiting = ((LT.cache.status || {}).host || {}).waiting || 0;
    const name = run.name;
    const words =
      run.state === "paused" ? t("The training of {name} is paused; pictures can be drawn.", { name })
      : run.kind === "grid" ? t("A grid is being rendered; pictures wait until it is done.")
      : waiting ? t("{name} is being trained; {n} waiting.", { name, n: waiting })
      : t("{name} is being trained: a picture may have to wait.", { name });
    const acts =
      run.kind === "grid" ? null
      : run.state === "paused" ? button(t("Go on training"), () => LT.command(run, "resume"))
      : button(pausing ? t("Pausing…") : t("Pause and generate"), () => pauseAndGenerate(run), pausing);
    LT.fill(banner, h("span", { style: { flex: "1 1 auto" } }, `▶ ${words}`), acts);
  };

  const pauseAndGenerate = async (run) => {
    pausing = true;
    paint();
    await LT.command(run, "pause");
    for (let second = 0; second < PATIENCE && LT.activeRun() && LT.activeRun().state !== "paused"; second += 1) {
      await new Promise((done) => window.setTimeout(done, 1000));
      await LT.poll();
    }
    pausing = false;
    paint();
    const generate = document.getElementById("txt2img_generate");
    if (generate) generate.click();
  };

  LT.startBanner = () => {
    LT.on("status", paint);
    paint();
  };
})();
