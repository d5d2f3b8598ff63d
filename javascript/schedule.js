/* The planned learning rates: the server's curve of each parameter group, drawn small, before the start and for the steps ahead. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const s = (...args) => LT.svg(...args);
  const t = (...args) => LT.t(...args);
  const MARGIN = { left: 44, right: 6, top: 8, bottom: 20 };
  const HEIGHT = 112;

  /** The name of a parameter group with its own learning rate: "unet", "text_encoder", "text_encoder_2", "unet plus". */
  LT.groupName = (name) => {
    const [bare, ...rest] = name.split(" ");
    const plus = rest.includes("plus");
    const share = rest.find((word) => /^x[\d.e+-]+$/.test(word));
    const number = (bare.match(/\d+$/) || [""])[0];
    const label = /^unet/.test(bare)
      ? t("U-Net")
      : /^text/.test(bare)
        ? number
          ? t("text encoder {n}", { n: number })
          : t("text encoder")
        : bare;
    const whole = plus ? t("{name}, LoRA+", { name: label }) : label;
    return share ? `${whole} × ${share.slice(1)}` : whole;
  };

  /** The value of a curve [[step, value], …] at a step, interpolated linearly. */
  LT.curveAt = (points, step) => {
    if (!points.length) return null;
    const next = points.findIndex(([at]) => at >= step);
    if (next <= 0) return next === 0 ? points[0][1] : points[points.length - 1][1];
    const [[from, low], [to, high]] = [points[next - 1], points[next]];
    return low + ((high - low) * (step - from)) / (to - from || 1);
  };

  const peak = (points) => points.reduce((high, [, rate]) => Math.max(high, rate), 0);
  /** Groups whose curves are the same are one line with several names. */
  const merged = (schedule) => {
    const curves = new Map();
    Object.entries(schedule).forEach(([name, points]) => {
      const key = JSON.stringify(points);
      curves.set(key, { names: [...((curves.get(key) || {}).names || []), name], points });
    });
    return [...curves.values()];
  };

  LT.makeSchedule = () => {
    const picture = s("svg", { role: "img", "aria-label": t("Learning rate over the steps") });
    const tip = h("div.lt-tip", { hidden: true });
    const box = h("div.lt-schedulebox", {}, picture, tip);
    const names = h("div.lt-row.lt-partnames");
    const head = h("div.lt-row");
    const element = h("div.lt-schedule", {}, head, box, names);
    let lines = [];
    let plan = null;
    let scale = null;

    const draw = () => {
      const width = box.clientWidth;
      if (!width || !lines.length) return;
      const last = Math.max(1, ...lines.map(({ points }) => points[points.length - 1][0]));
      const high = Math.max(...lines.map(({ points }) => peak(points))) || 1;
      const ticks = LT.ticks(0, high, 2);
      const top = ticks[ticks.length - 1] < high * 0.999 ? high : ticks[ticks.length - 1];
      const plot = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
      const x = (step) => plot.left + (step / last) * (plot.right - plot.left);
      const y = (rate) => plot.bottom - (rate / top) * (plot.bottom - plot.top);
      scale = { x, plot, last };
      const text = (words, x, down, anchor) => s("text", { x: x, y: down, "text-anchor": anchor }, words);
      const path = (points) =>
        points.map(([step, rate], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(rate).toFixed(1)}`).join("");
      picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      LT.fill(
        picture,
        ticks.map((tick) => [
          s("line", { x1: plot.left, x2: plot.right, y1: y(tick), y2: y(tick), class: "lt-gridline" }),
          text(LT.rate(tick), plot.left - 6, y(tick) + 4, "end"),
        ]),
        LT.ticks(0, last, Math.max(2, Math.floor(width / 110)))
          .filter(Number.isInteger)
          .map((tick) => text(LT.count(tick), x(tick), HEIGHT - 4, x(tick) > plot.right - 16 ? "end" : "middle")),
        lines.map(({ points }, index) => s("path", { d: path(points), class: `lt-curve line${index % 4}` })),
      );
    };
    new ResizeObserver(draw).observe(box);

    const read = (event) => {
      if (!scale) return;
      const step = Math.round(
        Math.max(
          0,
          Math.min(
            scale.last,
            ((event.clientX - box.getBoundingClientRect().left - scale.plot.left) / (scale.plot.right - scale.plot.left)) * scale.last,
          ),
        ),
      );
      tip.hidden = false;
      LT.fill(
        tip,
        h("b", {}, t("Step {n}", { n: LT.count(step) })),
        lines.map((line, index) =>
          h("div.lt-tiprow", {},
            h(`i.lt-swatch.line${index % 4}`),
            h("span", {}, line.names.map(LT.groupName).join(", ")),
            h("b", {}, LT.rate(LT.curveAt(line.points, step))),
          ),
        ),
      );
      const x = scale.x(step);
      tip.style.left = `${x + 12 + tip.offsetWidth > box.clientWidth ? x - 12 - tip.offsetWidth : x + 12}px`;
    };
    box.addEventListener("pointermove", read);
    box.addEventListener("pointerleave", () => (tip.hidden = true));

    const effective = () => {
      if (LT.findsRate({ type: LT.value("optimizer.type") })) return h("span.lt-muted", {}, t("multiples of what the optimizer finds"));
      const effective = Object.values(plan.effective || {});
      const rates = [...new Set(effective.map((one) => LT.rate(one.with_network)))];
      if (!rates.length || effective.every((one) => one.with_network === one.rate)) return null;
      return h("span.lt-muted", { title: t("The network's strength is alpha / rank: with it a change of the weights counts this much.") },
        t("effective with alpha / rank: {rates}", { rates: rates.join(" / ") }),
      );
    };
    const paint = (shown) => {
      plan = shown;
      lines = merged((plan && plan.schedule) || {}).filter(({ points }) => points.length > 1);
      element.hidden = !lines.length;
      if (element.hidden) return;
      LT.fill(head, h("b", {}, t("Learning rate")), h("span.lt-gap"), effective());
      const ends = ({ points }) => `${LT.rate(peak(points))} → ${LT.rate(points[points.length - 1][1])}`;
      LT.fill(
        names,
        lines.map((line, index) =>
          h("span", {}, h(`i.lt-swatch.line${index % 4}`), `${line.names.map(LT.groupName).join(", ")} ${ends(line)}`),
        ),
      );
      draw();
    };
    return { element, paint };
  };
})();
