/* The settings as a TOML file: out, and in again. The server reads and writes it, so that both sides mean the same. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const written = async () => (await LT.post("config", { config: LT.config() })).toml;

  LT.openExport = (owner) => {
    const act = (work) => async () => {
      LT.closePanel();
      try {
        await work(await written());
      } catch (error) {
        LT.complain(error);
      }
    };
    const download = (toml) => {
      const link = h("a", { href: URL.createObjectURL(new Blob([toml], { type: "application/toml" })), download: `${LT.resultName() || "lora"}.toml` });
      link.click();
      window.setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    };
    LT.panel(owner, h("div.lt-menu", {}, h("button", { onclick: act(download) }, LT.icon("save"), t("Save as a TOML file")), h("button", { onclick: act(LT.copy) }, LT.icon("copy"), t("Copy as TOML"))));
  };

  /* What became of another trainer's keys: the count, and each key that was not taken with the reason. */
  const tell = (imported) => {
    const rows = imported.left.map((one) => h("li", {}, h("code", {}, `${one.key} = ${String(JSON.stringify(one.value)).slice(0, 60)}`), " ", one.why));
    const notes = imported.notes.map((note) => h("div.lt-hint", {}, note));
    const count = t("{taken} of {keys} keys of {name} were taken.", { taken: imported.taken.length, keys: imported.keys, name: imported.name });
    return LT.ask(t("Import settings"), h("div.lt-imported", {}, h("p", {}, count), notes, rows.length ? h("details", { open: true }, h("summary", {}, t("Not taken ({count})", { count: rows.length })), h("ul", {}, rows)) : ""), [{ label: t("Close"), kind: "primary" }]);
  };

  LT.openImport = async () => {
    const area = h("textarea.lt-input.lt-code", { rows: 10, spellcheck: "false", placeholder: "[data]\ntrain_data_dir = \"…\"", "aria-label": t("Text of a settings file") });
    const file = h("input", { type: "file", accept: ".toml,.json", onchange: async () => file.files[0] && (area.value = await file.files[0].text()) });
    const wrong = h("div");
    const content = h("div", {}, h("div.lt-hint", {}, t("A config of this trainer, of kohya_ss (JSON), sd-scripts or lora-scripts (TOML), or Dreambooth concepts (JSON): choose its file, or paste its text.")), file, area, wrong);
    for (;;) {
      const answer = await LT.ask(t("Import settings"), content, [{ label: t("Use these settings"), kind: "primary" }, { label: t("Cancel") }]);
      if (answer !== 0) return;
      try {
        const { config, imported } = await LT.post("config", { toml: area.value });
        LT.useConfig(config);
        if (imported) return void (await tell(imported));
        LT.toast(t("The settings of the file stand in the form."), { kind: "good" });
        return;
      } catch (error) {
        if (!(error instanceof LT.Refused)) throw error;
        LT.fill(wrong, error.problems.map((problem) => LT.problem({ ...problem, message: `${problem.path ? problem.path + ": " : ""}${problem.message}` })));
      }
    }
  };
})();
