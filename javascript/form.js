/* The form's values, and the config built from them. The options are those that the server declares. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const t = (...args) => LT.t(...args);

  const isEqual = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const valueAt = (nested, path) =>
    path.split(".").reduce((inside, key) => (inside === undefined || inside === null ? undefined : inside[key]), nested);

  /** Fetches the declarations: LT.options is "network.dim" -> option. */
  LT.loadOptions = async () => {
    const response = await LT.get(`options?lang=${LT.language}`);
    LT.cache.options = response;
    LT.options = new Map();
    const files = { checkpoint: response.checkpoints || [], vae: response.vaes || [] };
    const choicesFor = (option) =>
      option.kind in files
        ? [
            { value: "", label: "" },
            ...files[option.kind].filter((file) => !file.loaded).map((file) => ({ value: file.path, label: file.title })),
          ]
        : option.choices;
    response.sections.forEach((section) =>
      section.options.forEach((option) => LT.options.set(option.path, { ...option, choices: choicesFor(option), section: section.name })),
    );
    for (const path of Object.keys(LT.state.values)) if (!LT.options.has(path)) delete LT.state.values[path]; // of another version
    LT.emit("options");
  };

  /** The training size defaults to the chosen model's native size. */
  LT.defaultOf = (path) => {
    if (path === "data.resolution" && LT.cache.modelSize) return LT.cache.modelSize;
    const value = valueAt(LT.cache.options.defaults, path);
    return value === undefined ? (LT.options.get(path) || {}).default : value;
  };
  /** The value of the field of `path`. */
  LT.value = (path) => {
    if (path in LT.state.values) return LT.state.values[path];
    return path === "sample.prompts" ? suggestedPrompts() : LT.defaultOf(path);
  };
  LT.isChanged = (path) => path in LT.state.values && !isEqual(LT.state.values[path], LT.defaultOf(path));

  /* ---- options that depend on others ---- */

  const isOff = (value) =>
    value === undefined ||
    value === null ||
    value === false ||
    value === "" ||
    Number(value) === 0 ||
    (Array.isArray(value) && !value.length);
  const conditionHolds = ([path, values], value) =>
    LT.unmetCondition(path, value) === null && (values.length ? values.some((one) => isEqual(one, value(path))) : !isOff(value(path)));
  /** The first condition of an option that does not hold: [path, values], or null; `value` tells what other options have. */
  LT.unmetCondition = (path, value = LT.value) =>
    ((LT.options.get(path) || {}).when || []).find((need) => !conditionHolds(need, value)) || null;
  /** Whether an option has an effect with the other values of the form. */
  LT.relevant = (path) => LT.unmetCondition(path) === null;

  /** A default preview prompt with the trigger and class words. */
  const suggestedPrompts = () => {
    const trigger = LT.state.values["data.trigger_word"] || "", known = LT.classWords();
    const words = known.startsWith(trigger) ? known : [trigger, known].filter(Boolean).join(" ");
    return words ? [words] : LT.defaultOf("sample.prompts") || [];
  };
  LT.classWords = () => LT.state.values["data.class_tokens"] || (LT.cache.pictures && LT.cache.pictures.class_tokens) || "";

  /** Sets fields; `by` tells a user's own typing from the wizard's. */
  LT.set = (changes, by = "user") => {
    for (const [path, value] of Object.entries(changes)) {
      const option = LT.options.get(path);
      if (value === undefined || (isEqual(value, LT.defaultOf(path)) && !(option && option.type === "list"))) delete LT.state.values[path];
      else LT.state.values[path] = value;
      if (by === "user" && value !== undefined) LT.state.typed[path] = true;
      else delete LT.state.typed[path];
    }
    LT.saveState();
    LT.emit("form", Object.keys(changes));
  };

  /* ---- undo ---- */

  const snapshot = () => ({ values: { ...LT.state.values }, typed: { ...LT.state.typed } });
  /** Does `work`, which changes the form. The function that it returns takes back only what that changed: a field that was
      changed again since, or that `work` did not touch, stays as it is. It returns how many stayed. */
  LT.undoable = (work) => {
    const before = snapshot();
    work();
    const after = snapshot();
    const paths = [...new Set([...Object.keys(before.values), ...Object.keys(after.values), ...Object.keys(before.typed)])].filter(
      (path) => !isEqual(before.values[path], after.values[path]) || before.typed[path] !== after.typed[path],
    );
    return () => {
      const undone = paths.filter((path) => isEqual(LT.state.values[path], after.values[path]));
      for (const path of undone) {
        for (const kept of ["values", "typed"]) {
          if (path in before[kept]) LT.state[kept][path] = before[kept][path];
          else delete LT.state[kept][path];
        }
      }
      LT.saveState();
      LT.emit("form", undone);
      return paths.filter((path) => !isEqual(before.values[path], after.values[path]) && !undone.includes(path)).length;
    };
  };

  const setAt = (nested, path, value) => {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((inside, key) => (inside[key] = inside[key] || {}), nested)[last] = value;
  };
  /** Defaults that come from the loaded model (its size, its clip skip): the server's own differ, so they are sent along. */
  const fromModel = () => {
    const config = {};
    LT.options.forEach((option, path) => {
      if (!isEqual(LT.defaultOf(path), option.default)) config[path] = LT.defaultOf(path);
    });
    return config;
  };
  /** Leaves out pictures that could not be decoded, as the Pictures step says. */
  const brokenLeftOut = () => {
    const broken = (LT.cache.pictures ? LT.cache.pictures.pictures : []).filter(
      (picture) => !picture.usable && picture.notes.includes("broken"),
    );
    return broken.length ? { "data.leave_out": [...new Set([...LT.leftOut(), ...broken.map((picture) => picture.key)])] } : {};
  };
  LT.config = (changes = {}) => LT.configAsEntered({ ...brokenLeftOut(), ...changes });
  /** The config as nested plain values; `changes` ("path" -> value) are laid over it. */
  LT.configAsEntered = (changes = {}) => {
    const nested = {};
    const prompts = LT.value("sample.prompts");
    const values = { ...fromModel(), ...LT.state.values, ...(prompts && prompts.length ? { "sample.prompts": prompts } : {}), ...changes };
    for (const [path, value] of Object.entries(values)) if (value !== undefined) setAt(nested, path, value);
    return nested;
  };
  /** Takes a whole config into the form; `changes` are laid over it. */
  LT.useConfig = (config, changes = {}) => {
    const values = {};
    for (const path of LT.options.keys()) {
      const value = path in changes ? changes[path] : valueAt(config, path);
      if (value !== undefined && !isEqual(value, LT.defaultOf(path))) values[path] = value;
    }
    LT.state.values = values;
    LT.state.typed = {};
    LT.noteSuggestions("kept");
    LT.saveState();
    LT.emit("form", [...LT.options.keys()]);
  };

  /* ---- a value as text, and back ---- */

  const isNumber = (text) => /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text);
  const asFloat = (value) =>
    typeof value === "number"
      ? value !== 0 && Math.abs(value) < 0.01
        ? LT.rate(value, 3)
        : String(Number(value.toPrecision(7)))
      : String(value);
  /** What the field of an option shows. */
  LT.shown = (option, value) => {
    if (value === null || value === undefined) return "";
    if (option.type === "list") return Array.isArray(value) ? value.join("\n") : String(value);
    if (option.type === "size") {
      return Array.isArray(value) ? LT.size(value[0], value[1]) : isNumber(String(value)) ? LT.size(value, value) : String(value);
    }
    if (option.type === "float") return Array.isArray(value) ? value.map(asFloat).join(", ") : asFloat(value);
    return String(value);
  };
  /** Parses a field's text; a text that cannot be parsed is sent to the server as it is, which reports the problem. */
  LT.read = (option, text) => {
    const trimmed = text.trim();
    const numeric = trimmed.replace(/[\s\u202f,_]/g, "");
    if (option.type === "list") {
      return text
        .split("\n")
        .map((line) => line.trim())
        .filter(Boolean);
    }
    if (option.type === "str" || option.type === "choice") {
      return option.type === "str" && /prompt|folder/.test(option.kind || "") ? trimmed : text;
    }
    if (!trimmed && option.optional) return null;
    if (!trimmed && option.type === "steps") return option.default;
    if (option.type === "size") {
      const sides = trimmed.split(/[x×*,\s]+/i).filter(Boolean);
      if (!sides.length || sides.length > 2 || !sides.every(isNumber)) return text;
      const [width, height] = sides.map(Number);
      return height === undefined || height === width ? width : [width, height];
    }
    const parts = option.many ? trimmed.split(/[,，;\s]+/).filter(Boolean) : [];
    if (parts.length > 1 && parts.every(isNumber)) return parts.map(Number);
    return isNumber(numeric) ? Number(numeric) : text;
  };

  /* ---- amounts: times each picture is seen = repeats x epochs ---- */

  /** Repeats that the folder's own name gives to every picture (`8_mika girl`), else 0. */
  LT.folderRepeats = () => {
    const pictures = LT.cache.pictures;
    if (!pictures) return 0;
    const repeatCounts = new Set(pictures.pictures.filter((picture) => picture.usable).map((picture) => picture.repeats));
    const [repeats] = repeatCounts;
    return repeatCounts.size === 1 && repeats !== pictures.asked ? repeats : 0;
  };
  LT.epochs = (changes = {}) => {
    const epochs = "steps.max_train_epochs" in changes ? changes["steps.max_train_epochs"] : LT.value("steps.max_train_epochs");
    return epochs || (LT.value("steps.max_train_steps") ? 0 : 10);
  };
  LT.repeats = (changes = {}) =>
    LT.folderRepeats() || ("data.num_repeats" in changes ? changes["data.num_repeats"] : LT.value("data.num_repeats")) || 1;

  /** Repeats and epochs whose product is nearest to `times`; 8 to 12 epochs where the amount allows (a file each). */
  LT.split = (times, fixed = LT.folderRepeats()) => {
    if (fixed) return { repeats: fixed, epochs: Math.max(1, Math.round(times / fixed)) };
    let best = null;
    for (const epochs of times < 8 ? [times] : [10, 8, 12, 9, 11]) {
      const repeats = Math.max(1, Math.round(times / epochs));
      const off = Math.abs(repeats * epochs - times);
      if (!best || off < best.off) best = { repeats, epochs, off };
    }
    return best;
  };

  /** The name of the result: as entered, or as the server makes it. */
  LT.resultName = () => {
    const plain = LT.cache.options ? LT.value("save.output_name") : "";
    const planned = LT.cache.plan && LT.cache.plan.output_name;
    const folder = LT.fileName(LT.state.values["data.train_data_dir"] || "").replace(/^\d+_/, "");
    const slug = (text) => text.trim().replace(/[<>:"/\\|?*\s]+/g, "_");
    return plain || planned || slug(LT.state.values["data.trigger_word"] || "") || slug(folder);
  };

  /** What is wrong with the form: the server's problems that stop a start. */
  LT.problems = () => (LT.cache.plan && LT.cache.plan.problems) || [];
  LT.warnings = () => (LT.cache.plan && LT.cache.plan.warnings) || [];
  LT.problemOf = (path) => LT.problems().find((problem) => problem.path === path) || null;

  LT.labelOf = (path) => {
    if (path === "times") return t("Times each picture is seen");
    const option = LT.options.get(path);
    return option ? option.label : path;
  };
})();
