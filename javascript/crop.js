/* Which part of a picture is trained on: a frame over the large picture, moved and sized by mouse, finger and keys.
   It is kept in the config (data.crops) as shares of the upright picture; the file is never written. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const SMALLEST = 32; // pixels of a side, as the server asks for
  const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
  const WHOLE = [0, 0, 1, 1];
  const MARGIN = 14; // around the picture, so that the handles at its edge can be taken

  /* ---- the option ---- */

  const entries = (crops = LT.value("data.crops")) =>
    new Map(
      (crops || []).map((text) => [
        text.slice(0, text.lastIndexOf("=")),
        text
          .slice(text.lastIndexOf("=") + 1)
          .split(",")
          .map(Number),
      ]),
    );
  const asFrame = ([left, top, right, bottom]) => ({ left, top, right, bottom });
  const asList = (frame) => [frame.left, frame.top, frame.right, frame.bottom];
  const formatShare = (share) => String(Number(share.toFixed(5)));
  /** The user's crop of a picture: [left, top, right, bottom] as fractions, or undefined. */
  LT.frameOf = (key) => entries().get(key);
  /** How many pictures the user cropped. */
  LT.cropCount = () => (LT.value("data.crops") || []).length;

  /** The option's value with these frames in it. */
  const withFrames = (crops, changes) => {
    const current = entries(crops);
    changes.forEach(([key, frame]) =>
      frame && frame.some((share, index) => Math.abs(share - WHOLE[index]) > 0.0005) ? current.set(key, frame) : current.delete(key),
    );
    return current.size ? [...current].map(([key, frame]) => `${key}=${frame.map(formatShare).join(",")}`) : undefined;
  };
  const asText = (frame) => (frame ? frame.map(formatShare).join() : "");
  const tell = (changes, undo) => {
    const cut = changes.filter(([key]) => LT.frameOf(key)).length;
    const words = cut
      ? LT.tn(
          cut,
          "The crop of {n} picture is kept; the file is not changed.",
          "The crops of {n} pictures are kept; the files are not changed.",
        )
      : LT.tn(changes.length, "{n} picture is used whole again.", "{n} pictures are used whole again.");
    LT.toast(words, { kind: "good", action: { label: t("Undo"), act: undo } });
  };
  const store = (changes) => LT.set({ "data.crops": withFrames(LT.value("data.crops"), changes) });
  /** An undo back to `before`, [[key, frame or null], …]: only of frames that are still as they are now. */
  const undoTo = (before) => {
    const folder = LT.folder();
    const after = new Map(before.map(([key]) => [key, asText(LT.frameOf(key))]));
    const unchanged = (crops) => before.filter(([key]) => asText(entries(crops).get(key)) === after.get(key));
    return () => LT.changeChoice(folder, "crops", (crops) => withFrames(crops || [], unchanged(crops || [])));
  };
  /** Crops pictures, [[key, frame or null], …], with an undo. */
  LT.crop = (changes) => {
    const before = changes.map(([key]) => [key, LT.frameOf(key) || null]);
    store(changes);
    tell(changes, undoTo(before));
  };

  /* ---- the overlay ---- */

  /** Lets the user choose the part of each of these pictures, one after the other. */
  LT.openCrop = (pictures) => {
    const { clamp, moved, sized, inShape, within, sizeFor } = LT.frames;
    const list = pictures.filter((picture) => picture.width > 0 && picture.height > 0 && !picture.notes.includes("broken"));
    if (!list.length) return LT.toast(t("There is no picture to crop in these files."), { kind: "bad" });
    const before = list.map((picture) => [picture.key, LT.frameOf(picture.key) || null]);
    const opener = document.activeElement;
    const parts = {
      image: h("img", { alt: "", draggable: "false" }),
      facts: h("div.lt-cropfacts", { "aria-live": "polite" }),
      shapes: h("div.lt-cropshapes"),
      head: h("div.lt-crophead"),
      answers: h("div.lt-answers"),
    };
    parts.inner = h("i.lt-cropinner");
    parts.frame = h("div.lt-cropframe", { tabindex: 0, role: "group", "aria-label": t("Part that is trained on") },
      parts.inner,
      HANDLES.map((handle) => h(`span.lt-handle.${handle}`, { "data-handle": handle })),
    );
    parts.shade = h("i");
    parts.area = h("div.lt-croparea", {}, parts.image, h("div.lt-cropdark", {}, parts.shade), parts.frame);
    parts.stage = h("div.lt-cropstage", {}, parts.area);
    const box = h("div.lt-cropper", { role: "dialog", "aria-modal": "true", "aria-label": t("Crop") },
      parts.head,
      parts.shapes,
      parts.stage,
      parts.facts,
      parts.answers,
    );
    const cover = h("div.lt-cover.lt-cropcover", {}, box);
    const view = { index: 0, frame: asFrame(WHOLE), base: asFrame(WHOLE), size: null };

    const picture = () => list[view.index];
    const shape = () => (view.size ? (view.size[0] / view.size[1]) * (picture().height / picture().width) : 0);
    const least = () => ({ width: Math.min(1, SMALLEST / picture().width), height: Math.min(1, SMALLEST / picture().height) });
    const pixels = () => [
      Math.round((view.frame.right - view.frame.left) * picture().width),
      Math.round((view.frame.bottom - view.frame.top) * picture().height),
    ];
    const set = (frame, chosen = true) => {
      view.frame = frame;
      if (chosen) view.base = frame;
      paintFrame();
    };

    const close = () => {
      watcher.disconnect();
      cover.remove();
      if (opener && opener.focus) opener.focus();
      const changed = before.filter(([key, frame]) => JSON.stringify(frame) !== JSON.stringify(LT.frameOf(key) || null));
      if (changed.length) tell(changed, undoTo(changed));
      return null;
    };
    const step = (offset) => {
      view.index = clamp(view.index + offset, 0, list.length - 1);
      open();
    };
    const use = () => {
      store([[picture().key, asList(view.frame)]]);
      if (view.index === list.length - 1) close();
      else step(1);
    };
    const useForAll = () => {
      store(list.map((one) => [one.key, asList(view.frame)]));
      close();
    };
    const remove = () => {
      store([[picture().key, null]]);
      if (view.index === list.length - 1) close();
      else step(1);
    };

    const open = () => {
      const one = picture();
      const frame = LT.frameOf(one.key);
      view.size = !frame && one.bucket && one.kept < 0.999 ? one.bucket : null;
      view.frame = view.base = asFrame(frame || (view.size ? one.crop : WHOLE));
      if (view.size) view.base = asFrame(WHOLE);
      parts.image.src = LT.thumbnail(one.path, 1024);
      LT.fill(
        parts.head,
        h("b.lt-clip", {}, one.name),
        h("span.lt-muted", {}, LT.size(one.width, one.height)),
        h("span.lt-gap"),
        list.length > 1 && h("span.lt-muted", {}, t("{n} of {total}", { n: view.index + 1, total: list.length })),
        h("button.lt-round", { "aria-label": t("Close"), title: "Esc", onclick: close }, LT.icon("cross")),
      );
      paintShapes();
      LT.fill(
        parts.answers,
        LT.button(list.length > 1 && view.index < list.length - 1 ? t("Use, next picture") : t("Use this part"), {
          kind: "primary",
          key: "⏎",
          onclick: use,
        }),
        list.length > 1 && LT.button(t("Use for all {n}", { n: list.length }), { onclick: useForAll }),
        frame && LT.button(t("Remove crop"), { key: "Del", onclick: remove }),
        h("span.lt-gap"),
        list.length > 1 && LT.button(t("Previous"), { icon: "left", disabled: view.index === 0, onclick: () => step(-1) }),
        list.length > 1 && LT.button(t("Next"), { after: "right", disabled: view.index === list.length - 1, onclick: () => step(1) }),
        LT.button(t("Cancel"), { kind: "plain", onclick: close }),
      );
      fit();
      parts.frame.focus({ preventScroll: true });
    };

    const sizes = () => {
      const used = ((LT.cache.pictures || {}).buckets || []).map((bucket) => [bucket.width, bucket.height]);
      const all = picture().bucket ? [picture().bucket, ...used] : used;
      return all.filter((size, index) => all.findIndex((other) => other.join() === size.join()) === index);
    };
    const paintShapes = () => {
      const choices = [{ value: "", label: t("Free") }, ...sizes().map((size) => ({ value: size.join("x"), label: LT.size(...size) }))];
      const choose = (value) => {
        view.size = value ? value.split("x").map(Number) : null;
        set(view.size ? within(view.base, shape()) : view.frame, !view.size);
      };
      const keys = h("span.lt-cropkeys.lt-muted.lt-nophone", {},
        LT.key("← →"),
        t("moves"),
        LT.key("⇧ ← →"),
        t("sizes"),
        LT.key("+ −"),
        t("about the middle"),
        LT.key("S"),
        t("next shape"),
      );
      LT.fill(
        parts.shapes,
        h("span.lt-muted", {}, t("Shape")),
        LT.segments(choices, view.size ? view.size.join("x") : "", choose, { label: t("Shape") }),
        h("span.lt-gap"),
        choices.length < 7 && keys,
      );
    };
    const nextShape = () => {
      const buttons = [...parts.shapes.querySelectorAll("button")];
      const index = buttons.findIndex((button) => button.getAttribute("aria-checked") === "true");
      buttons[(index + 1) % buttons.length].click();
      parts.frame.focus({ preventScroll: true });
    };

    const fit = () => {
      const room = parts.stage.getBoundingClientRect();
      const scale = Math.max(0.001, Math.min((room.width - 2 * MARGIN) / picture().width, (room.height - 2 * MARGIN) / picture().height));
      parts.area.style.width = `${Math.round(picture().width * scale)}px`;
      parts.area.style.height = `${Math.round(picture().height * scale)}px`;
      paintFrame();
    };
    const paintFrame = () => {
      const { left, top, right, bottom } = view.frame;
      const box = { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` };
      [parts.frame, parts.shade].forEach((one) => Object.assign(one.style, box));
      const [width, height] = pixels();
      const size = sizeFor(picture(), width, height);
      const scale = size ? Math.max(size[0] / width, size[1] / height) : 1;
      const inside = size ? [Math.min(1, size[0] / (width * scale)), Math.min(1, size[1] / (height * scale))] : [1, 1];
      Object.assign(parts.inner.style, {
        left: `${50 * (1 - inside[0])}%`,
        top: `${50 * (1 - inside[1])}%`,
        width: `${100 * inside[0]}%`,
        height: `${100 * inside[1]}%`,
      });
      parts.inner.hidden = inside[0] * inside[1] > 0.99;
      LT.fill(
        parts.facts,
        h("b", {}, t("keeps {share}", { share: LT.percent((right - left) * (bottom - top) * inside[0] * inside[1] + 0.0005) })),
        h("span.lt-number", {}, t("{size} pixels", { size: LT.size(width, height) })),
        size && h("span.lt-number", {}, LT.icon("next"), t("trained at {size}", { size: LT.size(...size) })),
        scale > 1.01 && h("span.lt-warn", {}, LT.icon("small"), t("enlarged: fine detail will be soft")),
      );
      parts.frame.setAttribute(
        "aria-description",
        t("keeps {share}", { share: LT.percent((right - left) * (bottom - top) * inside[0] * inside[1] + 0.0005) }),
      );
    };

    /* mouse and finger: a handle sizes, the frame moves, outside of it a new frame begins */
    const pointerPosition = (event) => {
      const bounds = parts.area.getBoundingClientRect();
      return { x: clamp((event.clientX - bounds.left) / bounds.width, 0, 1), y: clamp((event.clientY - bounds.top) / bounds.height, 0, 1) };
    };
    let drag = null;
    parts.area.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      const handle = event.target.dataset.handle || (event.target === parts.frame ? "move" : "new");
      drag = { handle, from: pointerPosition(event), frame: view.frame };
      parts.area.setPointerCapture(event.pointerId);
      parts.frame.focus({ preventScroll: true });
    });
    parts.area.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const { x, y } = pointerPosition(event);
      if (drag.handle === "move") return set(moved(drag.frame, x - drag.from.x, y - drag.from.y));
      if (drag.handle !== "new") return set(sized(drag.frame, drag.handle, x, y, shape(), least()));
      const [dx, dy] = [x - drag.from.x, y - drag.from.y];
      if (Math.abs(dx) < least().width || Math.abs(dy) < least().height) return null;
      const corner = {
        left: Math.min(x, drag.from.x),
        right: Math.max(x, drag.from.x),
        top: Math.min(y, drag.from.y),
        bottom: Math.max(y, drag.from.y),
      };
      const handle = (dy < 0 ? "n" : "s") + (dx < 0 ? "w" : "e");
      return set(shape() ? inShape(corner, handle, shape(), least()) : corner);
    });
    ["pointerup", "pointercancel"].forEach((name) => parts.area.addEventListener(name, () => (drag = null)));

    /* keys: arrows move, with Shift they size, + and - about the middle */
    const grow = (offset) => {
      const { left, top, right, bottom } = view.frame;
      const middle = { x: (left + right) / 2, y: (top + bottom) / 2 };
      const half = {
        x: Math.max(((right - left) / 2) * offset, least().width / 2),
        y: Math.max(((bottom - top) / 2) * offset, least().height / 2),
      };
      const size = {
        left: Math.max(0, middle.x - half.x),
        right: Math.min(1, middle.x + half.x),
        top: Math.max(0, middle.y - half.y),
        bottom: Math.min(1, middle.y + half.y),
      };
      set(shape() ? inShape(size, "", shape(), least()) : size);
    };
    const onKey = (event) => {
      event.stopPropagation();
      const inFrame = event.target === parts.frame;
      const direction = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
      const amount = event.altKey ? [1 / picture().width, 1 / picture().height] : [0.01, 0.01];
      if (event.key === "Escape") close();
      else if (event.key === "Tab") return LT.keepInside(box, event);
      else if (direction && inFrame) {
        const [right, down] = [direction[0] * amount[0], direction[1] * amount[1]];
        if (event.shiftKey) set(sized(view.frame, down ? "s" : "e", view.frame.right + right, view.frame.bottom + down, shape(), least()));
        else set(moved(view.frame, right, down));
      } else if (event.key === "Enter" && event.target.tagName !== "BUTTON") use();
      else if (event.key === "+" || event.key === "=") grow(1.04);
      else if (event.key === "-") grow(1 / 1.04);
      else if (event.key === "0") set(view.size ? within(asFrame(WHOLE), shape()) : asFrame(WHOLE));
      else if (event.key.toLowerCase() === "s") nextShape();
      else if (event.key === "PageDown") step(1);
      else if (event.key === "PageUp") step(-1);
      else if ((event.key === "Delete" || event.key === "Backspace") && LT.frameOf(picture().key)) remove();
      else return null;
      return event.preventDefault();
    };
    cover.addEventListener("keydown", onKey);

    LT.root().querySelector(".lt-app").append(cover);
    const watcher = new ResizeObserver(fit);
    watcher.observe(parts.stage);
    open();
    return null;
  };
})();
