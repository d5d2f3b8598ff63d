/* Building DOM elements, and the icons. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const SVG = "http://www.w3.org/2000/svg";

  const append = (element, child) => {
    if (child === null || child === undefined || child === false) return;
    if (Array.isArray(child)) child.forEach((one) => append(element, one));
    else element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  };

  const setAttributes = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
      else if (name === "value" || name === "checked" || name === "indeterminate") element[name] = value;
      else element.setAttribute(name, value === true ? "" : value);
    }
    return element;
  };

  /** h("div.lt-row", {title: "…", onclick: …}, "text", child, [children]) */
  LT.h = (what, attributes, ...children) => {
    const [tag, ...classes] = what.split(".");
    const element = document.createElement(tag || "div");
    if (classes.length) element.className = classes.join(" ");
    if (element.tagName === "BUTTON") element.type = "button";
    setAttributes(element, attributes);
    append(element, children);
    return element;
  };
  LT.svg = (tag, attributes, ...children) => {
    const element = setAttributes(document.createElementNS(SVG, tag), attributes);
    append(element, children);
    return element;
  };
  const summaryOf = (details) => details.querySelector("summary").textContent;
  /** Puts these children in place of what is there. What would look the same stays: a click that has begun and the focus
      of the keyboard must not be lost because a second has passed, nor what was unfolded. (Fields hold what no comparison
      of elements sees.) */
  LT.fill = (element, ...children) => {
    const fresh = document.createDocumentFragment();
    append(fresh, children);
    const unfolded = new Map([...element.querySelectorAll("details")].map((one) => [summaryOf(one), one.open]));
    for (const one of fresh.querySelectorAll("details")) one.open = unfolded.get(summaryOf(one)) ?? one.open;
    const same =
      fresh.childNodes.length === element.childNodes.length &&
      [...fresh.childNodes].every((child, index) => child.isEqualNode(element.childNodes[index]));
    if (!same || fresh.querySelector("input, select, textarea")) element.replaceChildren(fresh);
    return element;
  };

  /** A template whose {places} are filled with elements: "Memory {used} {sign}" -> [text, node, text, node]. */
  LT.rich = (template, nodes) => {
    const words = LT.t(template);
    return words.split(/(\{\w+\})/).filter(Boolean).map((part) => (/^\{\w+\}$/.test(part) ? nodes[part.slice(1, -1)] : part));
  };

  // Drawn on 16 x 16 in lines; those in FILLED are areas.
  const DRAWN = {
    idle: "M8 3.6a4.4 4.4 0 1 0 0 8.8a4.4 4.4 0 0 0 0-8.8z",
    check: "M3 8.6l3.2 3.2L13 4.6",
    cross: "M3.5 3.5l9 9M12.5 3.5l-9 9",
    down: "M4 6l4 4 4-4",
    right: "M6 4l4 4-4 4",
    left: "M10 4L6 8l4 4",
    next: "M3 8h10M9 4l4 4-4 4",
    back: "M13 8H3M7 4L3 8l4 4",
    above: "M8 13V3M4 7l4-4 4 4",
    below: "M8 3v10M4 9l4 4 4-4",
    search: "M7 2.8a4.2 4.2 0 1 0 0 8.4a4.2 4.2 0 0 0 0-8.4zM10.2 10.2L13.6 13.6",
    chip: "M4.5 4.5h7v7h-7zM6.8 6.8h2.4v2.4H6.8zM6 4.5V2M10 4.5V2M6 14v-2.5M10 14v-2.5M4.5 6H2M4.5 10H2M14 6h-2.5M14 10h-2.5",
    windows: "M2 3h9v7H2zM5 13h9V6",
    upload: "M8 10V2.5M4.8 5.5L8 2.3l3.2 3.2M2.5 13.5h11",
    save: "M2.5 2.5h8.5l2.5 2.5v8.5h-11zM5 2.8v3h5v-3M5 13.2V9.5h6v3.7",
    picture: "M2 2.5h12v11H2zM2.4 11l3.2-3.4 2.6 2.6 2-1.8 3.4 3M10.6 5.2v.6",
    pause: "M5.2 3v10M10.8 3v10",
    stop: "M3.5 3.5h9v9h-9z",
    warning: "M8 2.2L14.4 13.5H1.6zM8 6.4v3.4M8 11.6v.4",
    crop: "M4.5 1.5v10h10M1.5 4.5h10v10",
    mask: "M2.5 2.5h11v11h-11zM8 5a3 3 0 1 0 0 6a3 3 0 0 0 0-6z",
    shield: "M8 1.8l5 1.9v4c0 3-2.1 5.2-5 6.5c-2.9-1.3-5-3.5-5-6.5v-4z",
    plus: "M8 3v10M3 8h10",
    small: "M13.5 2.5L9.8 6.2M9.6 3v3.4H13M2.5 13.5l3.7-3.7M6.4 13V9.6H3",
    copy: "M5.5 5.5h8v8h-8zM10.5 5V2.5h-8v8H5",
    rotated: "M12.6 8.4A4.7 4.7 0 1 1 11 4.6M11.4 1.8v3.1H8.3",
    grid: "M2.5 2.5h4.2v4.2H2.5zM9.3 2.5h4.2v4.2H9.3zM2.5 9.3h4.2v4.2H2.5zM9.3 9.3h4.2v4.2H9.3z",
    wand: "M2.5 13.5L10 6M11.6 1.6v2.6M10.3 2.9h2.6M14 7v2M13 8h2M6.2 2.6v2M5.2 3.6h2",
    undo: "M3 6.2h6.4a3.6 3.6 0 0 1 0 7.2H6M5.8 3L2.8 6.2l3 3.2",
    shuffle: "M1.5 4.5h2.6l6.2 7h3.8M1.5 11.5h2.6l1.6-1.8M8.6 6.3l1.7-1.8h3.8M12.2 2.4l2.2 2.1-2.2 2.1M12.2 9.4l2.2 2.1-2.2 2.1",
    pencil: "M3 13l.7-3L11 2.7l2.3 2.3L6 12.3z",
    lock: "M3.5 7h9v6.5h-9zM5.4 7V4.8a2.6 2.6 0 0 1 5.2 0V7",
    sort: "M4 3v10M1.8 10.8L4 13l2.2-2.2M8.5 4H15M8.5 8h4.5M8.5 12h2.5",
    tear: "M2 2.5h12v11H2zM9 2.5L6.6 7l3 2-2 4.5",
    folder: "M1.8 3.5h4.4l1.6 1.8h6.4v7.7H1.8z",
    up: "M8 13V3.5M4 7.5L8 3.3l4 4.2",
    eye: "M1.5 8S4 3.8 8 3.8 14.5 8 14.5 8 12 12.2 8 12.2 1.5 8 1.5 8zM8 6.2a1.8 1.8 0 1 0 0 3.6a1.8 1.8 0 0 0 0-3.6z",
    wrench: "M13.6 4.4a3.3 3.3 0 0 1-4.5 3.8L4 13.4 2.6 12l5.2-5.1a3.3 3.3 0 0 1 3.8-4.5L9.7 4.3l2 2z",
    enter: "M13 3.5v5H3.5M6.5 5.5l-3 3 3 3",
  };
  const FILLED = {
    play: "M4.2 2.8v10.4L12.8 8z",
    star: "M8 1.4l2 4.4 4.8.5-3.6 3.2 1 4.7L8 11.8l-4.2 2.4 1-4.7L1.2 6.3 6 5.8z",
    dot: "M8 3.4a4.6 4.6 0 1 0 0 9.2a4.6 4.6 0 0 0 0-9.2z",
    minus: "M3.5 7h9v2h-9z",
  };

  /** A 16 x 16 icon in the colour of the text. */
  LT.icon = (name, extra = "") => {
    const filled = name in FILLED;
    const path = LT.svg("path", { d: filled ? FILLED[name] : DRAWN[name] });
    const box = { viewBox: "0 0 16 16", class: `lt-icon ${filled ? "lt-filled" : ""} ${extra}`, "aria-hidden": "true", focusable: "false" };
    return LT.svg("svg", box, path);
  };

  /** The same icon inside an SVG image, at x, y. */
  LT.sign = (name, x, y, size, extra = "") => {
    const filled = name in FILLED;
    const shape = { d: filled ? FILLED[name] : DRAWN[name], transform: `translate(${x - size / 2} ${y - size / 2}) scale(${size / 16})` };
    return LT.svg("path", { ...shape, class: `lt-sign ${filled ? "lt-filled" : ""} ${extra}` });
  };

  /** A button: LT.button("Save now", {icon: "save", kind: "primary", onclick}). */
  LT.button = (label, { icon, kind = "", key, after, ...attributes } = {}) =>
    LT.h(
      `button.lt-button${kind ? "." + kind : ""}`,
      attributes,
      icon && LT.icon(icon),
      LT.h("span", {}, label),
      key && LT.key(key),
      after && LT.icon(after),
    );
  /** The cap of a key. */
  LT.key = (label) => LT.h("kbd.lt-key", {}, label instanceof Node ? label : label === "⏎" ? LT.icon("enter") : label);
})();
