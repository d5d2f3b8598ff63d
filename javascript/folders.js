/* A folder chosen on the server's disk, and pictures dropped from this computer. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const ACCEPTED_FILES = /\.(png|jpe?g|webp|bmp|gif|tiff?|avif|txt|caption)$/i;

  /* ---- choosing on the server ---- */

  /** Lets the user walk through the server's folders; resolves to a path, or null. */
  LT.pickFolder = async (start) => {
    const list = h("div.lt-folders", { tabindex: "-1" });
    const path = h("bdi");
    const title = h("div.lt-clip.lt-path", {}, path);
    const inside = h("div.lt-inside");
    const use = { label: t("Use this folder"), kind: "primary" };
    let current = "";
    /** Where the user is, and what lies there; without a place nothing can be chosen. */
    const show = (place, response = {}) => {
      current = place;
      path.textContent = current || t("This computer");
      title.title = current;
      if (use.button) {
        use.button.disabled = !current;
        use.button.title = current ? "" : t("Choose a folder from the list first.");
      }
      LT.fill(
        inside,
        current && response.pictures !== undefined && [
          h("span", {}, response.pictures ? LT.tn(response.pictures, "{n} picture", "{n} pictures") : t("No pictures directly in it.")),
          (response.samples || []).map((sample) => LT.portrait(sample)),
        ],
      );
    };
    const walk = async (path) => {
      try {
        const response = await LT.get(`folders?path=${encodeURIComponent(path)}`);
        show(response.path, response);
        const line = (name, to, icon, count) =>
          h("button.lt-folder", { onclick: () => walk(to) },
            LT.icon(icon),
            h("span.lt-clip", {}, name),
            count > 0 && h("span.lt-muted", {}, LT.tn(count, "{n} picture", "{n} pictures")),
          );
        LT.fill(
          list,
          response.parent !== null && response.parent !== undefined && line(t("Up"), response.parent, "up"),
          !current && (response.roots || []).map((root) => line(root.name || root, root.path || root, "folder")),
          response.folders.map((folder) => line(folder.name, folder.path, "folder", folder.pictures)),
          !response.folders.length && current && h("div.lt-muted.lt-pad", {}, t("No folders in here.")),
        );
        list.scrollTop = 0;
        list.focus(); // the line that was clicked is gone: the keyboard stays in the dialog
      } catch (error) {
        if (!(error instanceof LT.RequestError)) throw error;
        show("");
        LT.fill(
          list,
          error.problems.map((problem) => LT.problem(problem)),
          LT.button(t("Back to the beginning"), { onclick: () => walk("") }),
        );
      }
    };
    const first = walk(start || "");
    const dialog = LT.ask(t("Choose a folder"), h("div", {}, title, inside, list), [use, { label: t("Cancel") }]);
    if (!current) show("");
    await first;
    return (await dialog) === 0 && current ? current : null;
  };

  /* ---- dropping ---- */

  const zones = [];
  const state = { total: 0, done: 0, name: "", failed: 0, stopped: false };

  LT.dropZone = () => {
    const picker = h("input", {
      type: "file",
      multiple: true,
      accept: "image/*,.txt,.caption",
      style: { display: "none" },
      onchange: () => {
        upload([...picker.files].map((file) => ({ file, path: file.name, folder: "" })));
        picker.value = "";
      },
    });
    const zone = h("button.lt-drop", { onclick: () => picker.click() });
    const paint = () => {
      if (state.total) {
        LT.fill(
          zone,
          LT.icon("upload"),
          t("Sending {done} of {total}…", { done: LT.count(state.done), total: LT.count(state.total) }),
          h("i.lt-sent", { style: { width: `${(100 * state.done) / state.total}%` } }),
        );
      } else { LT.fill(zone, LT.icon("upload"), t("Drop pictures or a folder here"));
      }
    };
    paint();
    zones.push(paint);
    LT.takeDrops(zone);
    return h("div", {}, zone, picker);
  };

  /** Lets `element` take dropped files and folders. */
  LT.takeDrops = (element) => {
    const carriesFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    element.addEventListener("dragover", (event) => {
      if (carriesFiles(event)) {
        event.preventDefault();
        element.classList.add("lt-over");
      }
    });
    element.addEventListener("dragleave", () => element.classList.remove("lt-over"));
    element.addEventListener("drop", async (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      event.stopPropagation(); // the host's page would take a dropped picture for its own prompt fields
      element.classList.remove("lt-over");
      upload(await dropped(event.dataTransfer));
    });
  };

  const dropped = async (transfer) => {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name, folder: "" }));
    const files = [];
    for (const entry of entries) await walk(entry, [], files);
    return files;
  };
  /** Files below an entry; `path` is relative to the dropped folder, so that its folders (`8_mika girl`) keep their names. */
  const walk = async (entry, above, files) => {
    if (entry.isFile) {
      files.push({
        file: await new Promise((resolve, reject) => entry.file(resolve, reject)),
        path: [...above.slice(1), entry.name].join("/"),
        folder: above[0] || "",
      });
    }
    if (!entry.isDirectory) return;
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at once
      if (!some.length) return;
      for (const inner of some) await walk(inner, [...above, entry.name], files);
    }
  };

  const safe = (name) => name.replace(/[<>:"/\\|?*\u0000-\u001f]+/g, "_").replace(/[. ]+$/, "") || "pictures";

  const upload = async (files) => {
    const accepted = files.filter(({ file }) => ACCEPTED_FILES.test(file.name));
    if (!accepted.length) {
      LT.toast(t("No pictures in what was dropped."), { kind: "bad" });
      return;
    }
    const name = safe(accepted.map(({ folder }) => folder).find(Boolean) || LT.state.values["data.trigger_word"] || t("dropped pictures"));
    const address = `uploads/${encodeURIComponent(name)}`;
    const there = await LT.get(address).catch(() => ({ files: [], parts: [] }));
    const begun = new Map((there.parts || []).map((part) => [part.name, part.bytes]));
    Object.assign(state, { total: accepted.length, done: 0, failed: 0 });
    let folder = there.path || "";
    const twice = [];
    for (const { file, path } of accepted) {
      if (there.files.some((one) => one.name === path && one.bytes === file.size)) {
        twice.push(path);
      } // sent before: a sending that was cut off goes on
      else {
        const from = (begun.get(path) || 0) < file.size ? begun.get(path) || 0 : 0;
        try {
          const response = await LT.send(
            `${address}?file=${encodeURIComponent(path)}${from ? `&offset=${from}` : ""}`,
            from ? file.slice(from) : file,
          );
          folder = response.folder;
          if (response.duplicate) twice.push(path);
        } catch (error) {
          state.failed += 1;
          if (state.failed === 1) LT.showError(error);
          if (state.failed > 3) break;
        }
      }
      state.done += 1;
      zones.forEach((paint) => paint());
    }
    state.total = 0;
    zones.forEach((paint) => paint());
    if (twice.length) {
      LT.toast(
        LT.tn(twice.length, "{names} was there already.", "{n} were there already: {names}", {
          names: twice.slice(0, 3).join(", ") + (twice.length > 3 ? "…" : ""),
        }),
      );
    }
    if (!folder) return;
    if (LT.folder() === folder) LT.readPictures();
    else LT.useFolder(folder);
  };
})();
