/* One picture of step 1: its small picture, what is kept of it, its verdict in a word. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const h = (...args) => LT.h(...args);
  const t = (...args) => LT.t(...args);
  const CROPPED = 0.9; // the bucket cuts a tenth or more

  /** Notes in order of importance, and how each is shown. Those of TO_LOOK_AT need a look, the others are information. */
  LT.NOTES = {
    "left-out": { icon: "cross", look: "plain", word: () => t("left out") },
    broken: { icon: "cross", look: "bad", word: () => t("broken") },
    "not-a-picture": { icon: "cross", look: "bad", word: () => t("not a picture") },
    "too-small": { icon: "cross", look: "bad", word: () => t("too small") },
    small: { icon: "small", look: "note", word: () => t("small") },
    copy: { icon: "copy", look: "note", word: () => t("near-copy") },
    "wrong-ending": { icon: "pencil", look: "plain", word: () => t("wrong ending") },
    rotated: { icon: "rotated", look: "plain", word: () => t("rotated") },
    transparent: { icon: "grid", look: "plain", word: () => t("transparent") },
  };
  const TO_LOOK_AT = ["broken", "not-a-picture", "too-small", "small", "copy"];
  LT.needsLook = (picture) => picture.notes.some((note) => TO_LOOK_AT.includes(note)) && !LT.leftOut().includes(picture.key);
  LT.isCropped = (picture) => picture.usable && (Boolean(picture.frame) || picture.kept <= CROPPED + 0.0005);
  /** The file's name without its extension. */
  LT.stem = (key) => LT.fileName(key).replace(/\.[^.]+$/, "");

  /** The content of a picture's card. */
  LT.cardOf = (picture) => [
    h("div.lt-picture", {},
      portrait(picture),
      verdict(picture),
      picture.mask && h("img.lt-maskinset", { src: LT.thumbnail(picture.mask, 64), alt: "", loading: "lazy" }),
      h("span.lt-tick", {}, LT.icon("check")),
    ),
    h("div.lt-name", {}, picture.name),
    h("div.lt-belowname", {}, below(picture)),
  ];
  /** The tooltip of a picture: everything that is known of it. */
  LT.cardTitle = (picture) => [picture.key, ...LT.explain(picture).map((line) => line.words), picture.caption].filter(Boolean).join("\n");

  /** A file's thumbnail; a torn picture when it cannot be decoded. */
  LT.portrait = (path) => {
    const picture = h("img", { src: LT.thumbnail(path), alt: "", loading: "lazy", decoding: "async", draggable: "false" });
    picture.addEventListener("error", () => picture.replaceWith(h("span.lt-broken", {}, LT.icon("tear"))));
    return picture;
  };
  const portrait = (picture) => {
    if (picture.notes.includes("broken") || picture.notes.includes("not-a-picture")) return h("span.lt-broken", {}, LT.icon("tear"));
    return [LT.portrait(picture.path), LT.isCropped(picture) && cropFrame(picture)];
  };
  /** The part that is kept, as a frame over the picture; what is cut off is dark. */
  const cropFrame = (picture) => {
    const longest = Math.max(picture.width, picture.height);
    const wide = (100 * picture.width) / longest;
    const high = (100 * picture.height) / longest;
    const [left, top, right, bottom] = picture.crop;
    const box = { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%` };
    const frame = h(picture.frame ? "i.lt-kept.lt-own" : "i.lt-kept", { style: box });
    return h(
      "span.lt-crop",
      { style: { left: `${(100 - wide) / 2}%`, top: `${(100 - high) / 2}%`, width: `${wide}%`, height: `${high}%` } },
      frame,
    );
  };

  const verdict = (picture) => {
    const note = Object.keys(LT.NOTES).find((name) => picture.notes.includes(name));
    if (note) return h(`span.lt-verdict.${LT.NOTES[note].look}`, {}, LT.icon(LT.NOTES[note].icon), LT.NOTES[note].word());
    if (picture.validation) return h("span.lt-verdict.plain", {}, LT.icon("eye"), t("held back"));
    if (picture.regularisation) return h("span.lt-verdict.plain", {}, LT.icon("shield"), t("regularisation"));
    if (picture.frame) return h("span.lt-verdict.plain", {}, LT.icon("crop"), t("cropped"));
    if ("mask" in picture) return h("span.lt-verdict.plain", {}, LT.icon("mask"), t("mask"));
    return null;
  };
  const below = (picture) => {
    if (picture.notes.includes("left-out")) return t("left out by you");
    if (!picture.usable) return t("left out: {reason}", { reason: picture.reason || "" });
    if (picture.frame) return t("your crop keeps {share}", { share: LT.percent(picture.kept + 0.0005) });
    if (picture.notes.includes("copy") && picture.like) return t("like {name}, used", { name: LT.stem(picture.like) });
    if (picture.notes.includes("small") && !LT.value("data.bucket_no_upscale")) {
      return t("{size}, enlarged", { size: LT.size(picture.width, picture.height) });
    }
    if (LT.isCropped(picture)) return t("crop keeps {share}", { share: LT.percent(picture.kept + 0.0005) });
    if (picture.regularisation && !picture.repeats) return t("not shown: enough others");
    return LT.size(picture.width, picture.height);
  };
})();
