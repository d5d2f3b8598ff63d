/* The loss chart: dots on a canvas (10 000 of them at once), lines and axes as SVG over it, values on hover. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const s = (...args) => LT.svg(...args);
  const t = (...args) => LT.t(...args);
  const MARGIN = { left: 34, right: 50, top: 34, bottom: 22 };
  const LAST_STEPS = 200;

  /** Round tick values of an axis from low to high: about `count` of them. */
  LT.ticks = (low, high, count) => {
    const rawStep = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rawStep));
    const step = [1, 2, 2.5, 4, 5, 10].map((multiple) => multiple * power).find((multiple) => multiple >= rawStep * 0.999);
    const ticks = [];
    for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) ticks.push(Number(tick.toPrecision(10)));
    return ticks;
  };
  const share = (sorted, quantile) => sorted[Math.max(0, Math.min(sorted.length - 1, Math.round(quantile * (sorted.length - 1))))];

  LT.makeChart = () => {
    const canvas = h("canvas");
    const picture = s("svg", { class: "lt-chartlines", role: "img", "aria-label": t("Loss over the steps") });
    const tip = h("div.lt-tip", { hidden: true });
    const box = h("div.lt-chart", { tabindex: 0 }, canvas, picture, tip);
    const chart = { element: box, data: null, live: false, last: false, hover: null };
    let scale = null;

    let lastKey = "";
    chart.paint = (data, { live = false, last = false } = {}) => {
      Object.assign(chart, { data, live, last });
      const key = [data.id, data.next, data.planned, live, last].join(" ");
      if (key !== lastKey) draw();
      lastKey = box.clientWidth ? key : "";
    };
    new ResizeObserver(() => chart.data && draw()).observe(box);

    const draw = () => {
      const width = box.clientWidth;
      const height = box.clientHeight;
      if (!width || !height || !chart.data) return;
      scale = measure(chart, width, height);
      drawDots(canvas, chart.data, scale, width, height);
      picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
      LT.fill(picture, axes(scale, width, height), lines(chart, scale), marks(chart, scale, width));
      chart.hover = s("g");
      picture.append(chart.hover);
    };

    const show = (step) => {
      const nearest = scale && nearestPoint(chart.data, scale, step);
      tip.hidden = !nearest;
      LT.fill(chart.hover || h("div"), nearest && hoverMarks(chart.data, scale, nearest));
      if (!nearest) return;
      chart.at = nearest.step;
      LT.fill(tip, tipWords(chart.data, nearest));
      const x = scale.x(nearest.step);
      tip.style.left = `${x + 12 + tip.offsetWidth > box.clientWidth - MARGIN.right ? x - 12 - tip.offsetWidth : x + 12}px`;
    };
    box.addEventListener("pointermove", (event) => scale && show(scale.back(event.clientX - box.getBoundingClientRect().left)));
    box.addEventListener("pointerleave", () => show(null));
    box.addEventListener("blur", () => show(null));
    box.addEventListener("keydown", (event) => {
      const offset = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!offset || !scale) return;
      event.preventDefault();
      event.stopPropagation();
      const from = chart.at === undefined ? scale.from : chart.at;
      show(Math.max(scale.from, Math.min(scale.to, from + offset * Math.max(1, Math.round((scale.to - scale.from) / 100)))));
    });
    return chart;
  };

  /* ---- scales ---- */

  const measure = ({ data, last }, width, height) => {
    const total = Math.max((data.plan && data.plan.total_steps) || 0, data.steps[data.steps.length - 1] || 1);
    const newest = data.steps[data.steps.length - 1] || 0;
    const to = last ? Math.max(newest, Math.min(total, LAST_STEPS)) : total;
    const from = last ? Math.max(0, newest - LAST_STEPS) : 0;
    const first = lowerBound(data.steps, from);
    const sortedLosses = data.losses
      .slice(first)
      .filter(isFinite)
      .sort((a, b) => a - b);
    const validationLosses = data.validations
      .filter((validation) => validation.step >= from && validation.step <= to)
      .map((validation) => validation.loss);
    const smooth = data.smoothed.slice(first).filter(isFinite);
    const all = [
      share(sortedLosses, 0.01),
      share(sortedLosses, 0.985),
      Math.min(...(smooth.length ? smooth : [1])),
      Math.max(...(smooth.length ? smooth : [0])),
      ...validationLosses,
    ].filter((value) => value !== undefined && isFinite(value));
    let low = Math.min(...all);
    let high = Math.max(...all);
    if (!all.length) [low, high] = [0, 1];
    if (high - low < 1e-9) [low, high] = [low * 0.9, high * 1.1 + 1e-9];
    const ticks = LT.ticks(low, high, height < 260 ? 4 : 6);
    const step = ticks.length > 1 ? ticks[1] - ticks[0] : high - low;
    low = Math.max(0, Math.floor(low / step + 1e-9) * step);
    high = Math.ceil(high / step - 1e-9) * step;
    const rate = LT.plannedRate(data);
    let rates = 0;
    for (const list of Object.values(data.groups)) {
      for (let index = 0; index < list.length; index += Math.max(1, Math.floor(list.length / 400))) {
        rates = Math.max(rates, list[index] || 0);
    }
      }
    for (let index = 0; index < data.rates.length; index += Math.max(1, Math.floor(data.rates.length / 400))) {
      rates = Math.max(rates, data.rates[index]);
    }
    for (let step = 1; step <= total; step += Math.max(1, Math.floor(total / 400))) rates = Math.max(rates, rate(step) || 0);
    const rateTicks = LT.ticks(0, rates || 1, 4);
    const rateStep = rateTicks[1] - rateTicks[0];
    const rateHigh = Math.ceil((rates || 1) / rateStep - 1e-9) * rateStep;
    const plot = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
    const x = (step) => plot.left + ((step - from) / Math.max(1, to - from)) * (plot.right - plot.left);
    const y = (loss) => plot.bottom - ((loss - low) / (high - low)) * (plot.bottom - plot.top);
    const yRate = (value) => plot.bottom - (value / rateHigh) * (plot.bottom - plot.top);
    const back = (pixel) => from + ((pixel - plot.left) / (plot.right - plot.left)) * (to - from);
    return {
      from,
      to,
      low,
      high,
      plot,
      x,
      y,
      yRate,
      back,
      rate,
      rateHigh,
      lossTicks: LT.ticks(low, high, Math.round((high - low) / step)),
      rateTicks: LT.ticks(0, rateHigh, 4),
      newest,
      savedLate: LT.numbered(data).some((save) => save.step <= to && x(save.step) > plot.right - 50),
      perEpoch: (data.plan && data.plan.steps_per_epoch) || 0,
    };
  };

  const lowerBound = (list, value) => {
    let [low, high] = [0, list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  /* ---- drawing ---- */

  const drawDots = (canvas, data, scale, width, height) => {
    const sharp = window.devicePixelRatio || 1;
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    const brush = canvas.getContext("2d");
    const style = window.getComputedStyle(canvas);
    brush.scale(sharp, sharp);
    brush.fillStyle = style.color;
    const shown = data.steps.length - lowerBound(data.steps, scale.from);
    brush.globalAlpha = shown > 4000 ? 0.16 : shown > 1500 ? 0.26 : 0.36;
    const size = shown > 4000 ? 1.6 : 2.2;
    brush.beginPath();
    for (let index = lowerBound(data.steps, scale.from); index < data.steps.length; index += 1) {
      const loss = data.losses[index];
      if (loss < scale.low || loss > scale.high) continue;
      const x = scale.x(data.steps[index]);
      const y = scale.y(loss);
      brush.moveTo(x + size / 2, y);
      brush.arc(x, y, size / 2, 0, 7);
    }
    brush.fill();
  };

  const text = (words, x, y, anchor = "start", extra = "") => s("text", { x, y, "text-anchor": anchor, class: extra }, words);
  const lossLabel = (value, step) => {
    let places = 2;
    while (places < 6 && Math.abs(step * 10 ** places - Math.round(step * 10 ** places)) > 1e-6) places += 1;
    return value.toFixed(places);
  };

  const axes = (scale, width, height) => {
    const { plot } = scale;
    const step = scale.lossTicks.length > 1 ? scale.lossTicks[1] - scale.lossTicks[0] : 0.01;
    const ahead = scale.x(Math.min(scale.to, Math.max(scale.from, scale.newest)));
    return [
      scale.newest < scale.to &&
        s("rect", { x: ahead, y: plot.top, width: Math.max(0, plot.right - ahead), height: plot.bottom - plot.top, class: "lt-ahead" }),
      scale.lossTicks.map((tick) => [
        s("line", { x1: plot.left, x2: plot.right, y1: scale.y(tick), y2: scale.y(tick), class: "lt-gridline" }),
        text(lossLabel(tick, step), plot.left - 8, scale.y(tick) + 4, "end"),
      ]),
      scale.rateTicks.map((tick) => text(LT.rate(tick), plot.right + 8, scale.yRate(tick) + 4)),
      stepTicks(scale).map((tick) => text(LT.count(tick), scale.x(tick), height - 6, "middle")),
      text(t("loss"), 0, plot.top - 10),
      text(t("learning rate"), width, plot.top - (scale.savedLate ? 22 : 10), "end", "lt-ratetext"),
    ];
  };
  const stepTicks = (scale) => {
    const room = Math.max(2, Math.floor((scale.plot.right - scale.plot.left) / 44));
    const each = scale.perEpoch || 0;
    const span = scale.to - scale.from;
    const step = each && span / each <= room * 6 ? each * Math.ceil(span / each / room) : Math.max(1, LT.ticks(0, span, room)[1] || 1);
    const ticks = [];
    for (let tick = Math.ceil(scale.from / step) * step; tick <= scale.to; tick += step) ticks.push(tick);
    return ticks;
  };

  /** A path through (steps, values) with one point per pixel: the mean of the values that fall on it. */
  const path = (steps, values, from, x, y) => {
    let path = "";
    let pixel = null;
    let [sum, count] = [0, 0];
    const flush = () => { if (count) path += `${path ? "L" : "M"}${pixel.toFixed(1)} ${y(sum / count).toFixed(1)}`; };
    for (let index = from; index < steps.length; index += 1) {
      if (!isFinite(values[index])) continue;
      const column = Math.round(x(steps[index]));
      if (column !== pixel) {
        flush();
        [pixel, sum, count] = [column, 0, 0];
      }
      sum += values[index];
      count += 1;
    }
    flush();
    return path;
  };

  /** Learning rates of the other parameter groups than that of `lr`: [[name, one value per step]]. */
  const others = (data) =>
    Object.entries(data.groups).filter(
      ([, list]) => list[list.length - 1] !== data.rates[data.rates.length - 1] || list[list.length >> 1] !== data.rates[list.length >> 1],
    );
  const linePath = (points) => points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const SMOOTH_FROM = 8; // from so many validations on their line is smoothed
  /** A centred weighted moving average, which lags behind in neither direction. */
  const averaged = (values) => {
    const radius = Math.max(1, Math.round(values.length / 16));
    return values.map((_, index) => {
      let [sum, weight] = [0, 0];
      for (let off = -radius; off <= radius; off += 1) {
        const near = values[index + off];
        if (near === undefined || !isFinite(near)) continue;
        const share = 1 + radius - Math.abs(off);
        [sum, weight] = [sum + share * near, weight + share];
      }
      return weight ? sum / weight : NaN;
    });
  };

  const lines = ({ data, live }, scale) => {
    const first = lowerBound(data.steps, scale.from);
    const inside = (value) => Math.max(scale.plot.top, Math.min(scale.plot.bottom, scale.y(value)));
    const ahead = [];
    for (
      let step = Math.max(scale.newest, scale.from, 1);
      step <= scale.to;
      step += Math.max(1, Math.ceil((scale.to - scale.from) / 300))
    ) {
      ahead.push(step);
    }
    if (ahead.length && ahead[ahead.length - 1] < scale.to) ahead.push(scale.to);
    const validations = data.validations.filter((validation) => validation.step >= scale.from && validation.step <= scale.to);
    const best = LT.bestOf(data);
    return [
      others(data).map(([, list]) =>
        s("path", { d: path(data.steps, list, first, scale.x, scale.yRate), class: "lt-rateline lt-otherrate" }),
      ),
      s("path", { d: path(data.steps, data.rates, first, scale.x, scale.yRate), class: "lt-rateline" }),
      scale.rate(scale.to) !== null &&
        s("path", { d: linePath(ahead.map((step) => [scale.x(step), scale.yRate(scale.rate(step))])), class: "lt-rateline lt-planned" }),
      s("path", {
        d: linePath(validations.map((validation) => [scale.x(validation.step), inside(validation.loss)])),
        class: validations.length < SMOOTH_FROM ? "lt-heldline" : "lt-heldline lt-raw",
      }),
      validations.length >= SMOOTH_FROM &&
        s("path", {
          d: linePath(
            averaged(validations.map((validation) => validation.loss)).map((loss, index) => [
              scale.x(validations[index].step),
              inside(loss),
            ]),
          ),
          class: "lt-heldline",
        }),
      s("path", { d: path(data.steps, data.smoothed, first, scale.x, inside), class: "lt-smoothline" }),
      validations.length <= 60 &&
        validations.map((validation) =>
          best && validation.step === best.step
            ? LT.sign("star", scale.x(validation.step), inside(validation.loss), 12, "lt-beststar")
            : s("rect", { x: scale.x(validation.step) - 3.5, y: inside(validation.loss) - 3.5, width: 7, height: 7, class: "lt-heldmark" }),
        ),
      (live || data.outcome === "failed") &&
        scale.newest > scale.from &&
        s("line", {
          x1: scale.x(scale.newest),
          x2: scale.x(scale.newest),
          y1: scale.plot.top,
          y2: scale.plot.bottom,
          class: data.outcome === "failed" ? "lt-now lt-failedat" : "lt-now",
        }),
    ];
  };

  const marks = ({ data }, scale) => {
    const saves = LT.numbered(data).filter((save) => save.step >= scale.from && save.step <= scale.to);
    const room = Math.max(1, Math.ceil(saves.length / ((scale.plot.right - scale.plot.left) / 18)));
    return [
      saves.length <= 60 &&
        saves.map((save) =>
          s("line", { x1: scale.x(save.step), x2: scale.x(save.step), y1: scale.plot.top, y2: scale.plot.bottom, class: "lt-saveline" }),
        ),
      saves
        .filter((save, index) => index % room === 0)
        .map((save) => LT.sign("save", scale.x(save.step), scale.plot.top - 10, 11, "lt-savemark")),
      [...new Set(data.changes.map((change) => change.step))]
        .filter((step) => step >= scale.from && step <= scale.to)
        .map((step) => [
          s("line", { x1: scale.x(step), x2: scale.x(step), y1: scale.plot.top, y2: scale.plot.bottom, class: "lt-changeline" }),
          LT.sign("pencil", scale.x(step) + 8, scale.plot.bottom - 9, 11, "lt-changemark"),
        ]),
      data.outcome === "failed" &&
        scale.newest > scale.from &&
        LT.sign("cross", scale.x(scale.newest), scale.plot.top - 10, 11, "lt-failedsign"),
    ];
  };

  /* ---- reading values off ---- */

  const nearestPoint = (data, scale, step) => {
    if (step === null || step < scale.from - 1 || step > scale.to + 1) return null;
    const near = data.validations.filter((validation) => Math.abs(scale.x(validation.step) - scale.x(step)) < 4);
    const nearestStep = near.length ? near[0].step : Math.round(step);
    const index = Math.min(lowerBound(data.steps, nearestStep), data.steps.length - 1);
    const done = index >= 0 && data.steps[index] === nearestStep;
    const validation = data.validations.find((each) => each.step === nearestStep);
    if (!done && !validation && nearestStep <= scale.newest && index >= 0 && nearestStep > 0) {
      return nearestPoint(data, scale, data.steps[index]);
    }
    return {
      step: nearestStep,
      epoch: done ? data.epochs[index] : null,
      smoothed: done ? data.smoothed[index] : null,
      loss: done ? data.losses[index] : null,
      held: validation ? validation.loss : null,
      rate: done ? data.rates[index] : nearestStep > 0 ? scale.rate(nearestStep) : null,
      others: done ? others(data).map(([name, list]) => [name, list[index]]) : [],
      done,
    };
  };
  const hoverMarks = (data, scale, point) => {
    const x = scale.x(point.step);
    const dot = (y, look) => s("circle", { cx: x, cy: y, r: 4, class: look });
    return [
      s("line", { x1: x, x2: x, y1: scale.plot.top, y2: scale.plot.bottom, class: "lt-hoverline" }),
      point.rate !== null && dot(scale.yRate(point.rate), "lt-ratedot"),
      point.smoothed !== null && point.smoothed <= scale.high && dot(scale.y(point.smoothed), "lt-smoothdot"),
    ];
  };
  const tipWords = (data, point) => {
    const each = data.plan && data.plan.steps_per_epoch;
    const end = each && point.step > 0 && point.step % each === 0;
    const changed = data.changes
      .filter((change) => change.step === point.step)
      .map((change) => h("div", {}, t("{setting}: {old} → {new}", LT.changeWords(change))));
    const title = [
      t("Step {n}", { n: LT.count(point.step) }),
      end ? t("end of epoch {n}", { n: point.step / each }) : point.epoch && t("epoch {n}", { n: point.epoch }),
      !point.done && point.step > 0 && t("planned"),
    ]
      .filter(Boolean)
      .join(" · ");
    const row = (look, name, value) => value !== null && h("div.lt-tiprow", {}, h(`i.${look}`), h("span", {}, name), h("b", {}, value));
    return [
      h("b", {}, title),
      row("lt-k-smooth", t("smoothed"), point.smoothed === null ? null : LT.loss(point.smoothed)),
      row("lt-k-dot", t("this step"), point.loss === null ? null : LT.loss(point.loss)),
      row("lt-k-held", t("validation"), point.held === null ? null : LT.loss(point.held)),
      row("lt-k-rate", t("learning rate"), point.rate === null ? null : LT.rate(point.rate)),
      point.others.map(([name, rate]) => row("lt-k-rate", LT.groupName(name), LT.rate(rate))),
      changed,
    ];
  };
})();
