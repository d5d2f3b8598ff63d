/* Exporting the settings as TOML and importing them, also from other trainers. The server reads and writes the files. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const configText = async () => (await LT.post("config", { config: LT.config() })).toml;

  LT.openExport = (owner) => {
    const act = (work) => async () => {
      LT.closePanel();
      try {
        await work(await configText());
      } catch (error) {
        LT.showError(error);
      }
    };
    const download = (toml) => {
      const link = h("a", {
        href: URL.createObjectURL(new Blob([toml], { type: "application/toml" })),
        download: `${LT.resultName() || "lora"}.toml`,
      });
      link.click();
      window.setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
    LT.panel(
      owner,
      h("div.lt-menu", {},
        h("button", { onclick: act(download) }, LT.icon("save"), t("Save as a TOML file")),
        h("button", { onclick: act(LT.copy) }, LT.icon("copy"), t("Copy as TOML")),
      ),
    );
  };

  /* What became of another trainer's keys: each that was not taken with the reason, each that was with what it is called here. */
  const shorten = (value) => {
    const text = JSON.stringify(value) || "";
    return text.length > 60 ? `${text.slice(0, 57)}…` : text;
  };
  const details = (title, rows, open) => rows.length > 0 && h("details", { open }, h("summary", {}, title), h("ul", {}, rows));
  const named = (path) => h("span", { title: path }, LT.labelOf(path));
  const between = (nodes) => nodes.flatMap((node, index) => (index ? [", ", node] : [node]));
  const importSummary = (imported) => {
    const left = imported.left.map((one) =>
      h("li", {}, h("code", {}, `${one.key} = ${shorten(one.value)}`), h("div.lt-muted", {}, one.why)),
    );
    const takenLines = imported.taken.map((one) =>
      h("li", {},
        h("code", {}, `${one.key} = ${shorten(one.value)}`),
        h("div.lt-muted", {}, LT.icon("next"), between(one.paths.map(named))),
      ),
    );
    const filled = imported.filled.map((one) => h("li", {}, named(one.path), " ", h("code", {}, shorten(one.value))));
    return h("div.lt-imported", {},
      h("p", {},
        t("{taken} of {keys} keys of {name} were taken.", { taken: imported.taken.length, keys: imported.keys, name: imported.name }),
      ),
      imported.notes.map((note) => h("p.lt-warn", {}, note)),
      details(t("Not taken ({count})", { count: left.length }), left, true),
      details(t("Taken ({count})", { count: takenLines.length }), takenLines, false),
      details(t("Set as that program does by itself ({count})", { count: filled.length }), filled, false));
  };
  const tell = async (imported, undo) => {
    const answer = await LT.ask(t("Import settings"), importSummary(imported), [
      { label: t("Keep these settings"), kind: "primary" },
      { label: t("Undo") },
    ]);
    if (answer === 1) undo();
  };

  /** Loads settings into the form and shows what became of each key, with an undo. */
  LT.takeSettings = async (config, imported) => {
    await tell(imported, LT.undoable(() => LT.useConfig(config)));
  };

  LT.openImport = async () => {
    const area = h("textarea.lt-input.lt-code", {
      rows: 10,
      spellcheck: "false",
      placeholder: '[data]\ntrain_data_dir = "…"',
      "aria-label": t("Text of a settings file"),
    });
    const file = h("input", {
      type: "file",
      accept: ".toml,.json,.yaml,.yml,.bat,.cmd,.sh,.ps1",
      onchange: async () => file.files[0] && (area.value = await file.files[0].text()),
    });
    const wrong = h("div");
    const content = h("div", {},
      h("div.lt-hint", {},
        t("Settings of this trainer, kohya_ss, sd-scripts, lora-scripts, OneTrainer, ai-toolkit or SimpleTuner: a file, or its text."),
      ),
      file,
      area,
      wrong,
    );
    for (;;) {
      const answer = await LT.ask(t("Import settings"), content, [
        { label: t("Use these settings"), kind: "primary" },
        { label: t("Cancel") },
      ]);
      if (answer !== 0) return;
      try {
        const { config, imported } = await LT.post("config", { toml: area.value });
        const undo = LT.undoable(() => LT.useConfig(config));
        if (imported) return void (await tell(imported, undo));
        LT.toast(t("The settings of the file stand in the form."), { kind: "good", action: { label: t("Undo"), act: undo } });
        return;
      } catch (error) {
        if (!(error instanceof LT.RequestError)) throw error;
        LT.fill(
          wrong,
          error.problems.map((problem) =>
            LT.problem({ ...problem, message: `${problem.path ? problem.path + ": " : ""}${problem.message}` }),
          ),
        );
      }
    }
  };
})();
