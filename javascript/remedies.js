/* The problems of a picture, and the buttons that solve them. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);

  const share = (picture) => LT.percent(picture.kept + 0.0005);
  const leaveOut = (pictures) => ({ label: t("Leave out"), act: () => LT.leaveOut(pictures, true) });

  /* Each: {words, acts}: what it means for the training, and what can be done. */
  const EXPLAINED = {
    "left-out": (picture) => ({
      words: t("You left it out."),
      acts: [{ label: t("Use again"), act: () => LT.leaveOut([picture], false) }],
    }),
    broken: (picture) => ({
      words: t("{reason} It is not used: save it again with an image program, or get it anew.", { reason: sentence(picture.reason) }),
      acts: [leaveOut([picture])],
    }),
    "not-a-picture": (picture) => ({ words: sentence(picture.reason), acts: [leaveOut([picture])] }),
    "too-small": (picture) => ({ words: sentence(picture.reason), acts: [picture.frame ? uncrop(picture) : leaveOut([picture])] }),
    small: (picture) => ({
      words: t("It is enlarged to {size}: fine detail will be soft.", { size: picture.bucket ? LT.size(...picture.bucket) : "" }),
      acts: [{ label: t("Never enlarge"), act: () => change("data.bucket_no_upscale", true, t("No picture is enlarged now.")) }],
    }),
    copy: (picture) => ({
      words: picture.validation
        ? t("Nearly the same picture as {name}: where that is trained on, the validation loss looks too good.", {
            name: picture.like || "",
          })
        : t("Nearly the same picture as {name}: this one motif counts twice.", { name: picture.like || "" }),
      acts: [
        { label: t("Show both"), act: () => LT.choosePictures([picture.like, picture.key]) },
        { label: t("Leave out this one"), act: () => LT.leaveOut([picture], true) },
        { label: t("Leave out the other"), act: () => LT.leaveOut([{ key: picture.like }], true) },
      ],
    }),
    "wrong-ending": () => ({
      words: t("The file is of another kind than its name says. It is used; other programs may refuse it until it is renamed."),
      acts: [],
    }),
    rotated: () => ({ words: t("It is turned as its EXIF data says; the file stays as it is."), acts: [] }),
    transparent: (picture) =>
      "mask" in picture
        ? {
            words: t("What is transparent in it is not learned."),
            acts: [
              {
                label: t("Learn all of it"),
                act: () => change("data.alpha_mask", false, t("Transparent parts become white and are learned.")),
              },
            ],
          }
        : {
            words: t("Its transparent parts become white."),
            acts: [
              {
                label: t("Learn only what is visible"),
                act: () => change("data.alpha_mask", true, t("What is transparent in pictures is not learned now.")),
              },
            ],
          },
  };
  const sentence = (reason) => (!reason ? "" : /[.!?。]$/.test(reason) ? reason : `${reason}${LT.language === "en" ? "." : "。"}`);
  const uncrop = (picture) => ({ label: t("Remove crop"), act: () => LT.crop([[picture.key, null]]) });
  const change = (path, value, words) => {
    const undo = LT.undoable(() => LT.set({ [path]: value }));
    LT.toast(words, { kind: "good", action: { label: t("Undo"), act: undo } });
  };

  const others = (picture) => [
    picture.frame &&
      picture.usable && {
        words: t("You cropped it: {share} of the picture is trained on.", { share: share(picture) }),
        acts: [uncrop(picture)],
      },
    !picture.frame &&
      LT.isCropped(picture) && {
        words: t("Its shape fits no training size exactly: {share} of it is kept.", { share: share(picture) }),
        acts: [{ label: t("Choose the part"), act: () => LT.openCrop([picture]) }],
      },
    picture.mask && { words: t("Only what is white in its mask is learned."), acts: [] },
    picture.regularisation && {
      words: picture.repeats
        ? t("A regularisation picture: it keeps the model from forgetting what the subject is in general.")
        : t("A regularisation picture that is not shown: there are enough others."),
      acts: [],
    },
    picture.validation && { words: t("Never trained on: its loss tells which epoch is best."), acts: [] },
  ];

  /** All notes on a picture: [{icon, look, words, acts: [{label, act}]}]. */
  LT.explain = (picture) => {
    const notes = Object.keys(LT.NOTES).filter((note) => picture.notes.includes(note));
    const first = notes.includes("left-out") ? ["left-out"] : notes;
    return [
      ...first.map((note) => ({ icon: LT.NOTES[note].icon, look: LT.NOTES[note].look, ...EXPLAINED[note](picture) })),
      ...others(picture).filter(Boolean).map((line) => ({ icon: "dot", look: "muted", ...line })),
    ].filter((line) => line.words);
  };

  /** The lines of one picture with their buttons, for the bar below the pictures; null where there is nothing to say. */
  LT.remedies = (picture) => {
    const lines = LT.explain(picture);
    if (!lines.length) return null;
    const buttons = (line) => line.acts.map((one) => LT.button(one.label, { kind: "small", onclick: one.act }));
    return h("div.lt-remedies", {},
      lines.map((line) =>
        h("div.lt-remedy", {}, LT.icon(line.icon, `lt-${line.look}`), h("span", {}, line.words), h("span.lt-gap"), buttons(line)),
      ),
    );
  };
})();
