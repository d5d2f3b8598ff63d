/* Tools for trained files: information, compatibility, and conversions to a new file. The input is never changed. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const POLL = 700;
  const [FILES, CHECKPOINTS] = ["lora_trainer_files", "lora_trainer_checkpoints"]; // what is offered while a path is written

  const field = (label, input, hint) =>
    h("label.lt-toolfield", {}, h("span.lt-muted", {}, label), input, hint && h("span.lt-hint", {}, hint));
  const text = (label, value = "", more = {}) =>
    h("input.lt-input", { type: "text", value, "aria-label": label, spellcheck: "false", ...more });
  const chosen = (label, choices) =>
    h("select.lt-input", { "aria-label": label },
      choices.map(([value, words]) => h("option", { value }, words)),
    );
  const fact = (name, value) => h("div.lt-fact", {}, h("span", {}, name), h("span", {}, value));
  const numbers = (rows) => rows.map((row) => `${row.value} × ${row.modules}`).join(", ");

  /* ---- information about a file ---- */

  const HOSTS = { a1111: "AUTOMATIC1111", forge: "Forge", reforge: "reForge", neo: "Forge Neo" };
  const loadLine = (word) => ({ all: t("reads it"), partly: t("reads it in part"), no: t("does not read it") })[word];
  /** Pictures of a file's data set; times their repeats they are the examples of an epoch. */
  LT.picturesWords = ({ pictures, examples }) =>
    !pictures
      ? t("{n} with their repeats", { n: examples })
      : examples && Number(examples) !== pictures
        ? t("{n}, with their repeats {examples}", { n: pictures, examples })
        : pictures;
  const about = ({ info, verify }, convert) => {
    const most = Math.max(...info.blocks.map((row) => row.norm), 1e-12);
    const trainedOn = info.trained_on;
    const rows = [
      [t("What it is"), `${info.kind} · ${info.family_label} · ${info.dtype} · ${(info.bytes / 1e6).toFixed(1)} MB`],
      [t("Layers"), t("{matched} fit the model, {unmatched} do not", verify)],
      info.ranks.length && [t("Rank"), numbers(info.ranks)],
      info.alphas.length && [t("Alpha"), numbers(info.alphas)],
      trainedOn.base_model && [t("Base model"), trainedOn.base_model],
      trainedOn.trigger && [t("Trigger word"), trainedOn.trigger],
      (trainedOn.pictures || trainedOn.examples) && [t("Pictures"), LT.picturesWords(trainedOn)],
      trainedOn.steps && [t("Steps"), trainedOn.steps],
      info.without_alpha > 0 && [t("Layers without an alpha, at strength 1"), info.without_alpha],
      [t("Hash in the WebUI"), info.hashes.webui],
    ];
    const bars = info.blocks.map((row) =>
      h("div.lt-strength", {},
        h("span", {}, row.block),
        h("i", { style: { width: `${(100 * row.norm) / most}%` } }),
        h("span.lt-number", {}, row.norm.toPrecision(3)),
      ),
    );
    return h("div.lt-facts", {},
      rows.filter(Boolean).map(([name, value]) => fact(name, value)),
      verify.hosts.map((row) => fact(HOSTS[row.host] || row.host, `${loadLine(row.loads)}${row.why ? ` (${row.why})` : ""}`)),
      (verify.notes || []).map((note) => h("div.lt-hint", {}, note)),
      verify.convert && LT.button(t("Make the file that WebUIs read"), { icon: "save", onclick: convert }),
      verify.names.slice(0, 8).map((row) => h("div.lt-hint", {}, `${row.name}: ${row.why}`)),
      bars.length > 0 && h("details", {}, h("summary", {}, t("Strength by block")), bars));
  };

  /* ---- the tools: fields -> {tool, body} ---- */

  const forms = {
    resize: () => {
      const [rank, conv, energy] = [text(t("Rank"), "8"), text(t("Rank of convolutions")), text(t("Share of the effect to keep"), "1")];
      const cut = h("input", { type: "checkbox" });
      return {
        label: t("Another rank"),
        fields: [
          field(t("Rank"), rank),
          field(t("Rank of convolutions"), conv, t("Empty: the same.")),
          field(t("Share of the effect to keep"), energy,
            t("1 keeps all that the rank holds; 0.9 takes as few ranks as hold nine tenths.")),
          field(t("Take the first ranks as they are (DyLoRA)"), cut),
        ],
        body: () => ({
          rank: Number(rank.value) || 0,
          conv_rank: Number(conv.value) || 0,
          energy: Number(energy.value) || 1,
          cut: cut.checked,
        }),
        suffix: () => `-r${rank.value}`,
      };
    },
    merge: () => {
      const [weight, other, second, rank] = [
        text(t("Weight"), "1"),
        text(t("Second file"), "", { list: FILES }),
        text(t("Its weight"), "1"),
        text(t("Rank")),
      ];
      const into = text(t("Into a checkpoint"), "", { list: CHECKPOINTS });
      return {
        label: t("Merge"),
        fields: [
          field(t("Weight"), weight),
          field(t("Second file"), other, t("Empty: only the first one.")),
          field(t("Its weight"), second),
          field(t("Into a checkpoint"), into, t("Its path; empty: into one LoRA.")),
          field(t("Rank"), rank, t("Empty: nothing is lost.")),
        ],
        body: (file) => ({
          files: [file, other.value.trim()].filter(Boolean),
          weights: [Number(weight.value), ...(other.value.trim() ? [Number(second.value)] : [])],
          into: into.value.trim(),
          rank: Number(rank.value) || 0,
        }),
        suffix: () => "-merged",
      };
    },
    extract: () => {
      const [tuned, rank, conv] = [
        text(t("Checkpoint after training"), "", { list: CHECKPOINTS }),
        text(t("Rank"), "32"),
        text(t("Rank of convolutions")),
      ];
      const skip = h("input", { type: "checkbox" });
      return {
        label: t("Extract"),
        hint: t("The first file is the checkpoint before training."),
        fields: [
          field(t("Checkpoint after training"), tuned),
          field(t("Rank"), rank),
          field(t("Rank of convolutions"), conv, t("Empty: only attention layers.")),
          field(t("Leave out layers that differ by rounding alone"), skip, t("As between a float32 and a bf16 file.")),
        ],
        body: (file) => ({
          file,
          tuned: tuned.value.trim(),
          rank: Number(rank.value) || 32,
          conv_rank: Number(conv.value) || 0,
          skip_rounding: skip.checked,
        }),
        suffix: () => "-extracted",
      };
    },
    convert: () => {
      const to = chosen(t("Names"), [["kohya", t("sd-scripts (WebUIs)")], ["diffusers", "diffusers"], ["peft", "PEFT"]]);
      return { label: t("Other names"), fields: [field(t("Names"), to)], body: () => ({ to: to.value }), suffix: () => `-${to.value}` };
    },
    edit: () => {
      const [title, trigger, words, preview] = [
        text(t("Title")),
        text(t("Trigger word")),
        text(t("Description")),
        text(t("Preview picture")),
      ];
      const named = () =>
        Object.fromEntries(
          [
            ["title", title.value],
            ["trigger", trigger.value],
            ["description", words.value],
          ].filter(([, value]) => value.trim()),
        );
      return {
        label: t("Label"),
        fields: [
          field(t("Title"), title),
          field(t("Trigger word"), trigger),
          field(t("Description"), words),
          field(t("Preview picture"), preview, t("Path of a picture on the server.")),
        ],
        body: () => ({ named: named(), preview: preview.value.trim() }),
        suffix: () => "-labelled",
      };
    },
  };

  /* ---- the dialog ---- */

  const roundingWords = (count, leftOut) =>
    leftOut
      ? LT.tn(count, "{n} layer that differs by rounding alone was left out.", "{n} layers that differ by rounding alone were left out.")
      : LT.tn(count, "{n} layer differs by rounding alone.", "{n} layers differ by rounding alone.");
  const wait = (time) => new Promise((resolve) => window.setTimeout(resolve, time));
  const result = (resultLine, body) => {
    const kept =
      resultLine.energy === undefined
        ? ""
        : t("{share} of the squares of the singular values are kept.", { share: LT.percent(resultLine.energy) });
    const rounding = resultLine.rounding ? roundingWords(resultLine.rounding, body.skip_rounding) : "";
    return h("div.lt-good", {}, LT.icon("check"),
      h("span", {}, [t("Written to {path}", { path: resultLine.out }), kept, rounding].filter(Boolean).join(" ")));
  };
  const run = async (tool, body, output) => {
    const { work } = await LT.post(`network/${tool}`, body);
    for (;;) {
      const job = await LT.get(`network/works/${work}`);
      if (job.state === "done") return result(job.result, body);
      if (job.state === "failed") return job.problems.map((problem) => LT.problem(problem));
      LT.fill(output, h("div.lt-muted", {}, job.total ? t("{done} of {total}", job) : t("working…")));
      await wait(POLL);
    }
  };

  LT.openTools = async () => {
    const networks = await LT.get("network/files").catch(() => ({ files: [], folder: "" }));
    const checkpoints = ((LT.cache.options || {}).checkpoints || []).map((one) => h("option", { value: one.path }, one.title));
    const lists = [
      h("datalist", { id: FILES },
        networks.files.map((file) => h("option", { value: file.path }, `${file.name} · ${file.mb} MB`)),
      ),
      h("datalist", { id: CHECKPOINTS }, checkpoints),
    ];
    const file = text(t("File"), networks.files.length ? networks.files[0].path : "", { list: FILES });
    const out = text(t("Name of the new file"), "", { placeholder: "name.safetensors" });
    const [infoOutput, toolOutput] = [h("div.lt-tooltold", { "aria-live": "polite" }), h("div.lt-tooltold", { "aria-live": "polite" })];
    const fields = h("div.lt-toolfields");
    let tool = "resize";
    let form = null;
    const show = (name) => {
      tool = name;
      form = forms[name]();
      file.setAttribute("list", name === "extract" ? CHECKPOINTS : FILES);
      LT.fill(
        fields,
        form.hint && h("div.lt-hint", {}, form.hint),
        form.fields,
        field(t("Name of the new file"), out, t("Beside the first file, unless a path is given. What is there is never replaced.")),
      );
    };
    const act = (work, output) => async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      LT.fill(output, h("div.lt-muted", {}, t("working…")));
      try {
        LT.fill(output, await work(file.value.trim()));
      } catch (error) {
        if (!(error instanceof LT.RequestError)) throw error;
        LT.fill(output, error.problems.map((problem) => LT.problem(problem)));
      } finally {
        button.disabled = false;
      }
    };
    const stemOf = (path) => path.replace(/^.*[\\/]/, "").replace(/\.[^.]*$/, "");
    const convert = act((path) => {
      const body = { file: path, out: `${stemOf(path)}-kohya.safetensors`, to: "kohya" };
      return run("convert", body, infoOutput);
    }, infoOutput);
    const showInfo = act(async (path) => about(await LT.post("network/info", { file: path }), convert), infoOutput);
    const make = act((path) => {
      const name = out.value.trim() || `${stemOf(path)}${form.suffix()}.safetensors`;
      return run(tool, { file: path, out: name, ...form.body(path) }, toolOutput);
    }, toolOutput);
    const useSettings = act(async (path) => {
      const { config, imported } = await LT.post("network/settings", { file: path });
      LT.takeSettings(config, imported);
      return h("div.lt-good", {}, LT.icon("check"), t("The settings of the file stand in the form."));
    }, infoOutput);
    show("resize");
    const choices = Object.keys(forms).map((name) => ({ value: name, label: forms[name]().label }));
    const content = h("div.lt-tools", {}, lists,
      field(t("File"), file, t("A trained file on the server: choose from the list, or write its path.")),
      h("div.lt-answers", {},
        LT.button(t("Look at it"), { icon: "eye", onclick: showInfo }),
        LT.button(t("Train again like this file"), { icon: "undo", onclick: useSettings }),
      ),
      infoOutput,
      LT.segments(choices, tool, show, { label: t("Make another file of it") }),
      fields,
      h("div.lt-answers", {}, LT.button(t("Make the new file"), { icon: "save", kind: "primary", onclick: make })),
      toolOutput);
    await LT.ask(t("Tools for trained files"), content, [{ label: t("Close") }]);
  };
})();
