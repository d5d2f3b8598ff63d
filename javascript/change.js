/* Settings that may be changed while a run goes on: asked for in a dialog, sent to the run, which notes each with its step. */
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
  const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

  const field = (option, data, wanted, problems, told) => {
    const problem = problems.find((one) => one.path === option.path);
    const control = LT.control(option, `lora_trainer_c_${option.path}`, (value) => { wanted[option.path] = value; told(); });
    control.paint(option.path in wanted ? wanted[option.path] : valueOf(data, option.path));
    return h(`div.lt-field${problem ? ".lt-wrong" : ""}`, { "data-path": option.path },
      h("div.lt-label", {}, h("label", { for: `lora_trainer_c_${option.path}` }, option.label), LT.help(option.help, option.label)),
      h("div.lt-control", {}, control.element), problem && LT.problem(problem));
  };

  const form = (data, wanted, problems) => {
    const sections = LT.seen.options.sections.map((one) => [one.label, one.options.map((option) => LT.options.get(option.path)).filter((option) => option.live && option.kind !== "hidden")]).filter(([, options]) => options.length);
    const stray = problems.filter((problem) => !(LT.options.get(problem.path) || {}).live);
    const now = (path) => (path in wanted ? wanted[path] : valueOf(data, path));
    const fields = [];
    const told = () => fields.forEach(([path, element]) => (element.hidden = LT.unmet(path, now) !== null));
    const put = (option) => {
      const element = field(option, data, wanted, problems, told);
      fields.push([option.path, element]);
      return element;
    };
    const made = sections.map(([label, options]) => [h("div.lt-group", {}, label), h("div.lt-fields.lt-two", {}, options.map(put))]);
    told();
    return h("div.lt-changeform", {},
      h("p.lt-muted", {}, t("It takes effect with the next step. Each change is noted in the log, and made again when the run is resumed.")),
      stray.map((problem) => LT.problem(problem)),
      made);
  };

  /** Asks what to change in the run, until the run takes it or the user gives up. */
  LT.askChange = async (run, data) => {
    const wanted = {};
    let problems = [];
    for (;;) {
      const answer = await LT.ask(t("Change {name} while it runs", { name: run.name }), form(data, wanted, problems), [{ label: t("Change"), kind: "primary", icon: "check" }, { label: t("Cancel") }]);
      const changes = Object.fromEntries(Object.entries(wanted).filter(([path, value]) => !same(value, valueOf(data, path))));
      if (answer !== 0 || !Object.keys(changes).length) return;
      try {
        await LT.post(`runs/${encodeURIComponent(run.id)}/control`, { command: "change", changes });
        LT.toast(LT.tn(Object.keys(changes).length, "{n} setting changes with the next step.", "{n} settings change with the next step."), { kind: "good" });
        return;
      } catch (error) {
        if (!(error instanceof LT.Refused)) throw error;
        problems = error.problems;
      }
    }
  };
})();
