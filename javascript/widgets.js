/* Widgets that several steps use: segmented choices, help, menus, dialogs, toasts. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /** Choices in a row, one of them pressed. `choices`: [{value, label, icon?, title?}]; arrow keys move. */
  LT.segments = (choices, chosen, choose, { label, kind = "" } = {}) => {
    const row = h(`div.lt-segments${kind ? "." + kind : ""}`, { role: "radiogroup", "aria-label": label });
    const pick = (value, focus) => {
      row.querySelectorAll("button").forEach((button) => {
        const on = button.dataset.value === String(value);
        button.setAttribute("aria-checked", on ? "true" : "false");
        button.tabIndex = on ? 0 : -1;
        if (on && focus) button.focus();
      });
    };
    choices.forEach((choice) => {
      const attributes = {
        role: "radio",
        "data-value": choice.value,
        title: choice.title,
        onclick: () => {
          pick(choice.value);
          choose(choice.value);
        },
      };
      row.append(h("button", attributes, choice.icon && LT.icon(choice.icon), choice.label));
    });
    row.addEventListener("keydown", (event) => {
      const offset = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!offset) return;
      const index = choices.findIndex((choice) => String(choice.value) === event.target.dataset.value);
      const next = choices[(index + offset + choices.length) % choices.length];
      event.preventDefault();
      event.stopPropagation();
      pick(next.value, true);
      choose(next.value);
    });
    pick(chosen);
    if (!row.querySelector('[aria-checked="true"]') && row.firstChild) row.firstChild.tabIndex = 0;
    row.pick = pick;
    return row;
  };

  let open = null;
  /** Closes the open panel, if there is one; true when there was. */
  LT.closePanel = () => {
    if (!open) return false;
    open.panel.remove();
    open.owner.setAttribute("aria-expanded", "false");
    if (open.panel.contains(document.activeElement) || document.activeElement === document.body) open.owner.focus();
    open = null;
    return true;
  };
  /** Opens `content` below `owner`; the same owner closes it again, as does Esc or a click elsewhere. */
  LT.panel = (owner, content, { right = false, wide = false } = {}) => {
    const isSameOwner = open && open.owner === owner;
    LT.closePanel();
    if (isSameOwner) return null;
    const panel = h(`div.lt-panel${wide ? ".lt-wide" : ""}`, { role: "dialog" }, content);
    const app = LT.root().querySelector(".lt-app");
    app.append(panel);
    const bounds = owner.getBoundingClientRect();
    const frame = app.getBoundingClientRect();
    const width = panel.offsetWidth;
    const left = right ? bounds.right - frame.left - width : bounds.left - frame.left;
    panel.style.left = `${Math.max(8, Math.min(left, frame.width - width - 8))}px`;
    panel.style.top = `${bounds.bottom - frame.top + 6}px`;
    owner.setAttribute("aria-expanded", "true");
    open = { owner, panel };
    const first = panel.querySelector("input, button, select, [tabindex]");
    if (first && !panel.querySelector(".lt-helptext")) first.focus({ preventScroll: true });
    return panel;
  };
  document.addEventListener("pointerdown", (event) => {
    if (open && !open.panel.contains(event.target) && !open.owner.contains(event.target)) LT.closePanel();
  });

  /** The small ? behind a label, with the help text. */
  LT.help = (text, title) => {
    const show = (event) => {
      event.preventDefault();
      LT.panel(button, h("div.lt-helptext", {}, title && h("b", {}, title), h("div", {}, text)));
    };
    const button = h(
      "button.lt-help",
      { "aria-label": t("What is {name}?", { name: title || "" }), title: text, "aria-expanded": "false", onclick: show },
      "?",
    );
    return button;
  };

  /** A modal dialog. `answers`: [{label, kind, icon, act}]; resolves to the answer's index, or null on Esc. */
  LT.ask = (title, content, answers) =>
    new Promise((resolve) => {
      const before = document.activeElement;
      const done = (answer) => {
        document.removeEventListener("keydown", leave, true);
        cover.remove();
        if (before && before.focus) before.focus();
        resolve(answer);
      };
      const buttons = answers.map((answer, index) =>
        (answer.button = LT.button(answer.label, { kind: answer.kind, icon: answer.icon, onclick: () => done(index) })),
      );
      const box = h("div.lt-dialog", { role: "dialog", "aria-modal": "true", "aria-label": title },
        h("div.lt-title", {}, title),
        content,
        h("div.lt-answers", {}, buttons),
      );
      const cover = h("div.lt-cover", { onclick: (event) => event.target === cover && done(null) }, box);
      // Esc must not depend on where the focus is: what was clicked may be gone, and the focus with it
      const leave = (event) => {
        if (event.key !== "Escape" || [...LT.root().querySelectorAll(".lt-cover")].pop() !== cover) return;
        event.stopPropagation();
        event.preventDefault();
        done(null);
      };
      document.addEventListener("keydown", leave, true);
      cover.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Tab") LT.keepInside(box, event);
      });
      LT.root().querySelector(".lt-app").append(cover);
      const field = box.querySelector("input");
      (field || buttons[0]).focus();
      if (field) field.select();
    });

  /** Keeps the Tab key inside an open dialog. */
  LT.keepInside = (box, event) => {
    const stops = [...box.querySelectorAll("button, input, select, textarea, [tabindex='0']")].filter((stop) => !stop.disabled);
    const last = stops[stops.length - 1];
    if (event.shiftKey && document.activeElement === stops[0]) last.focus();
    else if (!event.shiftKey && document.activeElement === last) stops[0].focus();
    else return;
    event.preventDefault();
  };

  const NOT_COVERED = "#lora_trainer_start, .lt-strip";
  const meet = (one, other) => one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom;
  /** Puts the notes at the bottom, or at the top where they would cover what the user needs now. */
  const place = (shelf) => {
    shelf.classList.remove("lt-high");
    const needed = [...LT.root().querySelectorAll(NOT_COVERED)].filter((element) => element.offsetParent !== null);
    const covers = () => needed.some((element) => meet(element.getBoundingClientRect(), shelf.getBoundingClientRect()));
    shelf.classList.toggle("lt-high", covers());
  };

  /** A short note at the edge of the page; `action`: {label, act}. */
  LT.toast = (text, { kind = "", action } = {}) => {
    const app = LT.root() && LT.root().querySelector(".lt-app");
    if (!app) return;
    let shelf = app.querySelector(".lt-toasts");
    if (!shelf) app.append((shelf = h("div.lt-toasts", { "aria-live": "polite" })));
    const note = h(`div.lt-toast${kind ? "." + kind : ""}`, {},
      kind === "bad" && LT.icon("cross"),
      kind === "good" && LT.icon("check"),
      h("span", {}, text),
    );
    const go = () => note.remove();
    if (action) note.append(LT.button(action.label, { kind: "small", onclick: () => { go(); action.act(); } }));
    note.append(h("button.lt-plain", { "aria-label": t("Close"), onclick: go }, LT.icon("cross")));
    shelf.append(note);
    place(shelf);
    window.setTimeout(go, action || kind === "bad" ? 12000 : 5000);
  };

  /** Copies text to the clipboard; also from an insecure page (another computer by http). */
  LT.copy = async (text) => {
    try {
      await window.navigator.clipboard.writeText(text);
    } catch (error) {
      const area = h("textarea", { value: text, style: { position: "fixed", opacity: "0" } });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    LT.toast(t("Copied."), { kind: "good" });
  };

  /** The problem text beside a field. */
  LT.problem = (problem, action) =>
    h("div.lt-problem", { role: "alert" }, LT.icon("cross"), h("span", {}, problem.message, problem.fix ? " " + problem.fix : ""), action);
})();
