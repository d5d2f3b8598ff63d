/* Help of each step, and the keys. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const words = () =>
    ({
      pictures: [
        t("Choose the folder of your pictures, or drop them. Nothing is written into your pictures."),
        t("Say what it is and give it a trigger word: the word that calls it in a prompt later."),
        t("A picture that needs a look is broken, small or nearly a copy: leave it out, or say that it is OK."),
        t("Choose a picture to read what is the matter with it and what can be done; Crop chooses the part of it that is trained on."),
      ],
      captions: [
        t("Each picture stands with its caption exactly as the model will read it."),
        t("Describe what may change (place, clothes, light); leave out what belongs to the subject. Click a caption to edit it."),
      ],
      settings: [
        t("Suggest settings fills in what suits your pictures and this machine; each change says why, and you choose which to take."),
        t("What will happen counts steps, time, disk and memory before you start."),
      ],
      train: [
        t("The loss says little by itself: look at the previews and at the validation loss. Where it rises, the model overfits."),
        t("You can close this page: training goes on in the server, and the page finds it again."),
      ],
      compare: [
        t("Rows are saved files, columns are LoRA weights. Look for the picture that shows your subject and still follows the prompt."),
        t("The star is a suggestion. Your own choice is stored with the file."),
      ],
    })[LT.state.step];

  const keys = () => {
    const common = [
      ["1 – 5", t("steps")],
      ["/", t("search")],
      ["Esc", t("close, clear")],
    ];
    const stepHelp = {
      pictures: [
        ["C", t("crop")],
        ["X", t("leave out")],
        ["↑ ↓ ← →", t("move")],
      ],
      train: [["← →", t("previews")]],
      compare: [
        ["↑ ↓ ← →", t("move in the grid")],
        ["⏎", t("use this one")],
      ],
    };
    return [...common, ...(stepHelp[LT.state.step] || [])];
  };

  LT.openHelp = (owner) => {
    const content = h("div.lt-helpbox", {},
      words().map((line) => h("p", {}, line)),
      h("div.lt-keys", {},
        keys().map(([key, what]) => h("div", {}, LT.key(key), h("span", {}, what))),
      ),
      h("div.lt-answers", {},
        LT.button(t("Runs…"), {
          kind: "lt-phone",
          onclick: () => {
            LT.closePanel();
            LT.openRuns(owner);
          },
        }),
        LT.button(t("Copy report"), {
          icon: "copy",
          onclick: () => {
            LT.closePanel();
            LT.copyReport();
          },
        }),
      ),
      h("div.lt-hint", {}, t("The report holds versions, settings and the last 100 events, without secrets.")),
    );
    LT.panel(owner, content, { right: true, wide: true });
  };
})();
