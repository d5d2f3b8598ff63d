/* A folder chosen on the server's disk. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  /* ---- choosing on the server ---- */

  /** Lets the user walk through the server's folders; resolves to a path, or null. */
  LT.pickFolder = async (start) => {
    const list = h("div.lt-folders", { tabindex: "-1" });
    const path = h("bdi");
    const title = h("div.lt-clip.lt-path", {}, path);
    const inside = h("div.lt-infolder");
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
})();
