/* Pictures that are dropped, or chosen on this computer: sent into a new folder or the one that is shown, and taken back. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const PICTURES = /\.(png|jpe?g|jfif|webp|bmp|gif|tiff?|avif|jxl|heic|heif|hif)$/i;
  const CAPTIONS = /\.(txt|caption)$/i;
  const SYSTEM_FILES = /^(\..*|Thumbs\.db|desktop\.ini)$/i;
  const LISTED = 4; // names that a list shows before it is opened

  const zones = [];
  const state = { total: 0, done: 0, aside: [] }; // aside: [{name, why}] of what was dropped and is not in the set
  LT.isUploading = () => state.total > 0;
  const paintZones = () => zones.forEach((paint) => paint());

  LT.dropZone = () => {
    const picker = (more, take) => {
      const field = h("input", {
        type: "file",
        multiple: true,
        style: { display: "none" },
        ...more,
        onchange: () => {
          const files = take([...field.files]);
          field.value = "";
          LT.upload(files);
        },
      });
      return field;
    };
    const files = picker({}, (chosen) => chosen.map((file) => ({ file, path: file.name, folder: "" })));
    const folder = picker({ webkitdirectory: true }, (chosen) =>
      chosen.map((file) => {
        const [first, ...rest] = (file.webkitRelativePath || file.name).split("/");
        return rest.length ? { file, path: rest.join("/"), folder: first } : { file, path: first, folder: "" };
      }),
    );
    const zone = h("button.lt-drop", { onclick: () => files.click() });
    const whole = h("button.lt-link.lt-wholefolder", { onclick: () => folder.click() }, LT.icon("folder"), t("or choose a whole folder"));
    const aside = h("div.lt-aside");
    const paint = () => {
      if (state.total) {
        LT.fill(
          zone,
          LT.icon("upload"),
          t("Sending {done} of {total}…", { done: LT.count(state.done), total: LT.count(state.total) }),
          h("i.lt-sent", { style: { width: `${(100 * state.done) / state.total}%` } }),
        );
      } else LT.fill(zone, LT.icon("upload"), t("Drop pictures or a folder here"));
      zone.disabled = whole.disabled = Boolean(state.total);
      LT.fill(aside, state.aside.length > 0 && asideList());
    };
    paint();
    zones.push(paint);
    LT.takeDrops(zone);
    return h("div", {}, zone, whole, aside, files, folder);
  };

  /** What was dropped and is not in the set: every name, with the reason. */
  const asideList = () => {
    const line = ({ name, why }) => h("li", {}, h("b", {}, name), " ", h("span.lt-muted", {}, why));
    const close = () => {
      state.aside = [];
      paintZones();
    };
    const [shown, rest] = [state.aside.slice(0, LISTED), state.aside.slice(LISTED)];
    return h("div.lt-notice.lt-asidelist", { role: "status" },
      LT.icon("warning"),
      h("div.lt-grow", {},
        h("div", {}, LT.tn(state.aside.length, "{n} file was not added:", "{n} files were not added:")),
        h("ul", {}, shown.map(line)),
        rest.length > 0 &&
          h("details", {}, h("summary", {}, LT.tn(rest.length, "{n} more", "{n} more")), h("ul", {}, rest.map(line))),
      ),
      h("button.lt-plain", { "aria-label": t("Close"), onclick: close }, LT.icon("cross")),
    );
  };
  const setAside = (name, why) => state.aside.push({ name, why });

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
      const unread = [];
      LT.upload(await dropped(event.dataTransfer, unread), unread);
    });
  };

  const dropped = async (transfer, unread) => {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
    if (!entries.length) return [...transfer.files].map((file) => ({ file, path: file.name, folder: "" }));
    const files = [];
    for (const entry of entries) await walk(entry, [], files, unread);
    return files;
  };
  /** Files below an entry; `path` is relative to the dropped folder, so that its folders (`8_mika girl`) keep their names. */
  const walk = async (entry, above, files, unread) => {
    try {
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
        for (const inner of some) await walk(inner, [...above, entry.name], files, unread);
      }
    } catch (error) {
      unread.push([...above, entry.name].join("/"));
    }
  };

  /* ---- what is taken, and where to ---- */

  const safe = (name) => name.replace(/[<>:"/\\|?*\u0000-\u001f]+/g, "_").replace(/[. ]+$/, "") || "pictures";
  const whyNot = (name) => {
    if (SYSTEM_FILES.test(name)) return t("a file of the system, not a picture");
    if (/\.(mov|mp4|m4v|avi|mkv|webm)$/i.test(name)) return t("a film, not a picture");
    if (/\.(zip|rar|7z)$/i.test(name)) return t("an archive: unpack it first");
    if (/\.(psd|svg|pdf|ico|tga|exr|hdr|raw|cr2|cr3|nef|arw|dng)$/i.test(name)) return t("cannot be read: save it as PNG or JPEG");
    return t("neither a picture nor a caption");
  };
  /** Splits what came into what can be sent and what is named; files of several dropped folders keep their folders' names. */
  const sort = (files) => {
    const accepted = files.filter(({ file }) => PICTURES.test(file.name) || CAPTIONS.test(file.name));
    const several = new Set(accepted.map(({ folder }) => folder)).size > 1;
    files.filter((one) => !accepted.includes(one)).forEach(({ file, path }) => setAside(path, whyNot(file.name)));
    return several ? accepted.map((one) => (one.folder ? { ...one, path: `${one.folder}/${one.path}`, folder: "" } : one)) : accepted;
  };

  /** The folder for a new set: one that is there already goes on only where a sending of these very files was cut off. */
  const newFolder = async (accepted) => {
    const plain = safe(accepted.map(({ folder }) => folder).find(Boolean) || LT.state.values["data.trigger_word"] || t("dropped pictures"));
    const sizes = new Map(accepted.map(({ file, path }) => [path, file.size]));
    for (let number = 1; ; number += 1) {
      const name = number === 1 ? plain : `${plain} ${number}`;
      const there = await LT.get(`uploads/${encodeURIComponent(name)}`).catch(() => ({ files: [], parts: [] }));
      if (there.files.every((one) => sizes.get(one.name) === one.bytes) || number > 200) return { name, there };
    }
  };
  const askWhere = (count) =>
    LT.ask(
      LT.tn(count, "Where does this file go?", "Where do these {n} files go?"),
      h("p", {}, t("Nothing that is there is replaced, and Undo takes the files out again.")),
      [
        { label: t("Add to {folder}", { folder: LT.fileName(LT.folder()) }), kind: "primary", icon: "plus" },
        { label: t("New folder"), icon: "folder" },
        { label: t("Cancel") },
      ],
    );

  /** Sends files: [{file, path, folder}]. Whatever is not taken stands under the drop zone with its reason. */
  LT.upload = async (files, unread = []) => {
    if (state.total) return;
    state.aside = [];
    unread.forEach((name) => setAside(name, t("this browser could not read it")));
    const accepted = sort(files);
    paintZones();
    if (!accepted.length) {
      if (files.length || unread.length) LT.toast(t("No pictures in what was dropped."), { kind: "bad" });
      return;
    }
    const before = LT.folder();
    const answer = before ? await askWhere(accepted.length) : 1;
    if (answer === null || answer === 2) return;
    const target = answer === 0 ? { into: before, there: { files: [] } } : await newFolder(accepted);
    const result = await sendAll(accepted, target);
    if (!result.folder) return;
    if (LT.folder() === result.folder) LT.readPictures();
    else LT.useFolder(result.folder);
    report(result, before);
  };

  /* ---- sending ---- */

  const addressOf = ({ into, name }, path, from) =>
    `${into ? `folders?path=${encodeURIComponent(into)}&` : `uploads/${encodeURIComponent(name)}?`}file=${encodeURIComponent(path)}${
      from ? `&offset=${from}` : ""
    }`;
  const COMPANION = /(-masklabel\.[^./]*|\.txt|\.caption)$/i; // a picture's mask or caption
  /** A path without what follows the picture's own name. */
  const stem = (path) => path.replace(COMPANION.test(path) ? COMPANION : /\.[^./]*$/, "");

  /** Sends one after the other, pictures first: a caption or mask follows its picture where that got another name. */
  const sendAll = async (accepted, target) => {
    const result = { folder: target.there.path || target.into || "", stored: [], twice: [] };
    const begun = new Map((target.there.parts || []).map((part) => [part.name, part.bytes]));
    const renamed = new Map();
    const inOrder = [...accepted].sort((a, b) => COMPANION.test(a.path) - COMPANION.test(b.path));
    let failed = 0;
    Object.assign(state, { total: accepted.length, done: 0 });
    for (const { file, path } of inOrder) {
      paintZones();
      if (target.there.files.some((one) => one.name === path && one.bytes === file.size)) result.twice.push(path);
      else if (failed > 3) setAside(path, t("not sent: the sending failed"));
      else {
        try {
          const to = COMPANION.test(path) && renamed.has(stem(path)) ? renamed.get(stem(path)) + path.slice(stem(path).length) : path;
          const from = (begun.get(to) || 0) < file.size ? begun.get(to) || 0 : 0; // a sending that was cut off goes on
          const response = await LT.send(addressOf(target, to, from), from ? file.slice(from) : file);
          result.folder = response.folder;
          if (response.duplicate) result.twice.push(path);
          else result.stored.push(response.path);
          if (!COMPANION.test(path)) renamed.set(stem(path), path.slice(0, path.lastIndexOf("/") + 1) + stem(LT.fileName(response.path)));
        } catch (error) {
          if (!(error instanceof LT.RequestError)) throw error;
          failed += 1;
          setAside(path, error.message);
        }
      }
      state.done += 1;
    }
    state.total = 0;
    paintZones();
    return result;
  };

  const report = ({ folder, stored, twice }, before) => {
    const some = twice.slice(0, 3).join(", ") + (twice.length > 3 ? "…" : "");
    const words = [
      stored.length > 0 &&
        LT.tn(stored.length, "{n} file was added to {folder}.", "{n} files were added to {folder}.", { folder: LT.fileName(folder) }),
      twice.length > 0 && LT.tn(twice.length, "{names} was there already.", "{n} were there already: {names}", { names: some }),
    ].filter(Boolean);
    const act = async () => {
      try {
        const { kept } = await LT.post("uploads", { take_back: stored });
        if (kept.length) LT.toast(LT.tn(kept.length, "{n} file stays: it was changed since.", "{n} files stay: they were changed since."));
      } catch (error) {
        LT.showError(error);
      }
      if (LT.folder() === folder && before !== folder) LT.useFolder(before);
      else LT.readPictures();
    };
    const undo = stored.length || before !== folder ? { action: { label: t("Undo"), act } } : {};
    if (words.length) LT.toast(words.join(" "), { kind: "good", ...undo });
  };
})();
