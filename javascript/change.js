/* Changing settings while a run goes on: a dialog that sends them to the run, which logs each with its step. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /** Whether this server lets a run be changed while it goes on. */
  LT.canChange = () => [...LT.options.values()].some((option) => option.live);

  /** The value that a run has now: its settings, and what was changed since. */
  const valueOf = (data, path) => {
    const changed = data.changes.filter((change) => change.path === path).pop();
    if (changed) return changed.new;
    const value = path.split(".").reduce((inside, key) => (inside ? inside[key] : undefined), data.config || {});
    return value === undefined ? LT.options.get(path).default : value;
  };
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  const field = (option, data, changes, problems, onChange) => {
    const problem = problems.find((one) => one.path === option.path);
    const control = LT.control(option, `lora_trainer_c_${option.path}`, (value) => { changes[option.path] = value; onChange(); });
    control.paint(option.path in changes ? changes[option.path] : valueOf(data, option.path));
    return h(`div.lt-field${problem ? ".lt-wrong" : ""}`, { "data-path": option.path },
      h("div.lt-label", {}, h("label", { for: `lora_trainer_c_${option.path}` }, option.label), LT.help(option.help, option.label)),
      h("div.lt-control", {}, control.element), problem && LT.problem(problem));
  };

  const form = (data, changes, problems) => {
    const sections = LT.cache.options.sections
      .map((one) => [
        one.label,
        one.options.map((option) => LT.options.get(option.path)).filter((option) => option.live && option.kind !== "hidden"),
      ])
      .filter(([, options]) => options.length);
    const stray = problems.filter((problem) => !(LT.options.get(problem.path) || {}).live);
    const valueNow = (path) => (path in changes ? changes[path] : valueOf(data, path));
    const fields = [];
    const updateVisibility = () => fields.forEach(([path, element]) => (element.hidden = LT.unmetCondition(path, valueNow) !== null));
    const addField = (option) => {
      const element = field(option, data, changes, problems, updateVisibility);
      fields.push([option.path, element]);
      return element;
    };
    const groups = sections.map(([label, options]) => [h("div.lt-group", {}, label), h("div.lt-fields.lt-two", {}, options.map(addField))]);
    updateVisibility();
    return h("div.lt-changeform", {},
      h("p.lt-muted", {},
        t("It takes effect with the next step. Each change is noted in the log, and made again when the run is resumed."),
      ),
      stray.map((problem) => LT.problem(problem)),
      groups);
  };

  /** Shows the dialog until the run accepts the changes or the user cancels. */
  LT.askChange = async (run, data) => {
    const newValues = {};
    let problems = [];
    for (;;) {
      const answer = await LT.ask(t("Change {name} while it runs", { name: run.name }), form(data, newValues, problems), [
        { label: t("Change"), kind: "primary", icon: "check" },
        { label: t("Cancel") },
      ]);
      const changes = Object.fromEntries(Object.entries(newValues).filter(([path, value]) => !same(value, valueOf(data, path))));
      if (answer !== 0 || !Object.keys(changes).length) return;
      try {
        await LT.post(`runs/${encodeURIComponent(run.id)}/control`, { command: "change", changes });
        LT.toast(LT.tn(Object.keys(changes).length, "{n} setting changes with the next step.", "{n} settings change with the next step."), {
          kind: "good",
        });
        return;
      } catch (error) {
        if (!(error instanceof LT.RequestError)) throw error;
        problems = error.problems;
      }
    }
  };
})();
