/* Words and numbers in the reader's language. The English template is the key of its translation. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const NARROW = "\u202f"; // between the thousands
  let table = {};
  let missing = null; // set by tests: collects templates without a translation

  LT.language = "en";

  const browserLanguage = () => {
    if (LT.state.language) return LT.state.language;
    const inUrl = new URLSearchParams(window.location.search).get("__lang");
    if (inUrl) return inUrl;
    const options = window.opts || {};
    if (options.localization && options.localization !== "None") return options.localization;
    // the host's page carries the translation itself, not its name: a page with Chinese words is a Chinese page
    if (window.localization && Object.values(window.localization).some((word) => /[\u4e00-\u9fff]/.test(word))) return "zh";
    return window.navigator.language || "en";
  };

  /** Chooses the language (the user, the address, the host, the browser) and fetches its words. */
  LT.loadWords = async () => {
    LT.language = /^(zh|chinese|简|中)/i.test(browserLanguage()) ? "zh_CN" : "en";
    table = LT.language === "en" ? {} : await LT.get(`words?lang=${LT.language}`);
    LT.words = table;
  };
  LT.collectMissing = (set) => (missing = set);

  /** The template in the reader's language with its {places} filled. */
  LT.t = (template, values = {}) => {
    if (missing && LT.language !== "en" && !(template in table)) missing.add(template);
    const words = table[template] || template;
    return words.replace(/\{(\w+)(?::[^}]*)?\}/g, (placeholder, name) => (name in values ? LT.messageText(values[name]) : placeholder));
  };
  /** One template for exactly one thing, another for any other count; the count is {n}. */
  LT.tn = (count, one, many, values = {}) => LT.t(count === 1 ? one : many, { n: LT.count(count), ...values });

  /** The text of a server message ({"template", "values", "text"}), or of a plain value. */
  LT.messageText = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "object" && "template" in value) return LT.t(value.template, value.values);
    return String(value);
  };

  const grouped = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, NARROW);

  /** 1320 -> "1 320". */
  LT.count = (value) => grouped(String(Math.round(value)));
  /** A loss with three significant digits. */
  LT.loss = (value) =>
    value === null || value === undefined || !isFinite(value)
      ? "–"
      : value >= 10
        ? value.toPrecision(3)
        : value >= 0.1 || value === 0
          ? value.toFixed(3)
          : value.toFixed(4);
  /** A learning rate: 1.4e-4. */
  LT.rate = (value, places = 2) => {
    if (value === null || value === undefined || !isFinite(value)) return "–";
    if (value === 0) return "0";
    if (value >= 0.01) return String(Number(value.toPrecision(places + 1)));
    const [digits, power] = value.toExponential(places).split("e");
    return `${Number(digits)}e${Number(power)}`;
  };
  /** MB (as the server counts) -> "5.3 GB" or "208 MB". */
  LT.megabytes = (mb) => (mb >= 1000 ? `${(mb / 1024).toFixed(1)} GB` : mb >= 10 ? `${Math.round(mb)} MB` : `${Number(mb.toFixed(1))} MB`);
  LT.gigabytes = (mb) => (mb / 1024).toFixed(1);
  /** Seconds -> "25 s", "6 min", "1 h 20 min". */
  LT.duration = (seconds) => {
    if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
    if (seconds < 90) return LT.t("{n} s", { n: Math.max(0, Math.round(seconds)) });
    const minutes = Math.round(seconds / 60);
    if (minutes < 90) return LT.t("{n} min", { n: minutes });
    const rest = minutes % 60;
    return rest ? LT.t("{hours} h {n} min", { hours: Math.floor(minutes / 60), n: rest }) : LT.t("{hours} h", { hours: minutes / 60 });
  };
  const two = (value) => String(value).padStart(2, "0");
  const moment = (time) => new Date(typeof time === "number" ? time * 1000 : time);
  /** Seconds since 1970 -> "14:02". */
  LT.clock = (time) => `${two(moment(time).getHours())}:${two(moment(time).getMinutes())}`;
  LT.clockSeconds = (time) => `${LT.clock(time)}:${two(moment(time).getSeconds())}`;
  /** "14:02" of today, else "2026-11-21 14:02". */
  LT.date = (time) => {
    const day = moment(time);
    const same = day.toDateString() === new Date().toDateString();
    return same ? LT.clock(time) : `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())} ${LT.clock(time)}`;
  };
  LT.percent = (share) => `${Math.floor(share * 100)}${NARROW}%`;
  LT.size = (width, height) => `${width} × ${height}`;
  /** Whether a device, by the server's name for it, ("cuda:0", "NVIDIA GeForce …", "CPU", "cpu") is a GPU. */
  LT.onGpu = (device) => !/^(cpu\b|$)/i.test(String(device || ""));
  /** "Memory", or in a language that tells the two apart, the GPU's. */
  LT.memoryName = (gpu) => (gpu && LT.language !== "en" ? LT.t("GPU memory") : LT.t("Memory"));
  /** The last part of a path. */
  LT.fileName = (path) => String(path).split(/[\\/]/).filter(Boolean).pop() || "";
})();
