/* The HTTP client of our own routes. URLs are relative, so that a host under a sub-path works. */
(() => {
  const LT = (window.LoraTrainer = window.LoraTrainer || {});
  const BASE = "./lora-trainer/v1/";

  LT.url = (path) => BASE + path;

  /** An error response of the server: {status, problems: [{path, message, fix}]}. */
  class RequestError extends Error {
    constructor(status, problems) {
      super(problems.map((problem) => `${problem.message} ${problem.fix || ""}`).join("\n"));
      this.status = status;
      this.problems = problems;
    }
  }
  LT.RequestError = RequestError;

  const readError = async (response) => {
    if (response.status === 401) {
      return new RequestError(401, [
        { path: "", message: LT.t("You are not logged in any more."), fix: LT.t("Reload the page and log in.") },
      ]);
    }
    const body = await response.json().catch(() => ({}));
    const problems = body.problems || [
      { path: "", message: LT.t("The server answered {status}.", { status: response.status }), fix: "" },
    ];
    return new RequestError(response.status, problems);
  };

  const request = async (path, options = {}) => {
    let response;
    try {
      response = await fetch(LT.url(path), { ...options, headers: { "X-Language": LT.language, ...(options.headers || {}) } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new RequestError(0, [
        { path: "", message: LT.t("The server does not answer."), fix: LT.t("It may be starting again: wait a moment.") },
      ]);
    }
    if (!response.ok) throw await readError(response);
    return (response.headers.get("Content-Type") || "").includes("json") ? response.json() : response.text();
  };

  LT.getText = (path) => request(path);
  LT.get = (path, options) => request(path, options);
  LT.post = (path, body, options = {}) =>
    request(path, { method: "POST", body: JSON.stringify(body), ...options, headers: { "Content-Type": "application/json" } });
  LT.remove = (path) => request(path, { method: "DELETE" });
  /** Sends a file as it is. */
  LT.send = (path, file) => request(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });

  /** Only the latest of several calls resolves to its result: a late result of an older one is dropped (null). */
  LT.latestOnly = (work) => {
    let number = 0;
    return async (...args) => {
      const own = ++number;
      const result = await work(...args);
      return own === number ? result : null;
    };
  };

  /** Shows an error's problems as toasts, where there is no field to show them at. */
  LT.showError = (error) => {
    if (!(error instanceof RequestError)) throw error;
    error.problems.forEach((problem) => LT.toast(`${problem.message} ${problem.fix || ""}`.trim(), { kind: "bad" }));
  };

  LT.thumbnail = (path, size = 256) => LT.url(`thumbnail?path=${encodeURIComponent(path)}&size=${size}`);
  LT.runFile = (run, path) => LT.url(`runs/${encodeURIComponent(run)}/files/${path.split("/").map(encodeURIComponent).join("/")}`);
})();
