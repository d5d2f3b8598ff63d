/* Keyboard shortcuts of the whole tab: 1-5, /, Esc, and those of the current step. Ignored while the user types. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});

  const writes = (element) => element && (element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName));
  const elsewhere = (element) => element && element !== document.body && !LT.root().contains(element);

  const onKey = (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !LT.isVisible()) return;
    if (event.key === "Escape" && LT.closePanel()) return event.preventDefault();
    if (elsewhere(document.activeElement)) return;
    if (writes(event.target) && event.target.type !== "checkbox" && event.target.type !== "range") {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const digit = "12345".indexOf(event.key);
    const own = { pictures: LT.picturesKey, captions: LT.captionsKey, train: LT.trainKey, compare: LT.compareKey }[LT.state.step];
    if (event.key.length === 1 && digit >= 0) LT.goToStep(LT.STEPS[digit]);
    else if (event.key === "/") focusSearch();
    else if (!own || !own(event)) return;
    event.preventDefault();
    event.stopPropagation();
  };

  const focusSearch = () => {
    let field = LT.panels[LT.state.step].querySelector("[data-search]");
    if (!field) {
      LT.goToStep("settings");
      field = LT.panels.settings.querySelector("[data-search]");
    }
    field.focus();
    field.select();
  };

  LT.startKeys = () => document.addEventListener("keydown", onKey);
})();
