// Talking to the node: the token, JSON requests, and event streams that come back by themselves.

const KEY = "purlin-token";

/** Moves `#token=...` from the address bar into this tab's storage, so that no one copies it along. */
export function adoptToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found) {
    keepToken(found);
    history.replaceState(null, "", location.pathname + location.search);
  }
}
let memory = null; // for browsers that refuse storage
export function token() {
  try { return sessionStorage.getItem(KEY) ?? memory; } catch { return memory; }
}
export function keepToken(text) {
  memory = text;
  try { text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY); } catch { /* kept in memory */ }
}

function headers(more = {}) {
  const secret = token();
  return secret ? { ...more, authorization: `Bearer ${secret}` } : more;
}

/** An answer that was a problem document, or no answer at all. */
export class Refusal extends Error {
  constructor(problem, status) {
    super(problem.detail ?? problem.title ?? `HTTP ${status}`);
    this.problem = problem;
    this.status = status;
  }
}

/** A value as text, whatever its bytes are. */
export async function requestText(path) {
  const response = await fetch(path, { headers: headers(), cache: "no-store" });
  const text = await response.text();
  if (response.ok) return text;
  let problem = {};
  try { problem = JSON.parse(text); } catch { /* not a problem document */ }
  throw new Refusal(problem, response.status);
}

export async function request(path, init = {}) {
  const response = await fetch(path, { ...init, headers: headers(init.headers), cache: "no-store" });
  const text = await response.text();
  let body = {};
  try { body = text ? JSON.parse(text) : {}; } catch { body = { detail: text.slice(0, 200) }; }
  if (!response.ok) throw new Refusal(body, response.status);
  return body;
}

/** A topic or pattern as path segments: slashes stay, everything else is escaped. */
export const segments = (text) => text.split("/").map(encodeURIComponent).join("/");

const FIRST_WAIT_MS = 300, LONGEST_WAIT_MS = 5000, SILENCE_MS = 20000;

/**
 * Follows an event stream until `stop()`; reconnects with growing, jittered waits and resumes after
 * the last event id. `on.event(name, data, id)`, `on.open()`, `on.lost(error, waitMs)`, `on.heard()`.
 */
export function follow(path, on) {
  let stopped = false, lastId = null, wait = FIRST_WAIT_MS, controller = null, wake = null;

  async function once() {
    controller = new AbortController();
    let silence = null;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => controller.abort(new Error("the node fell silent")), SILENCE_MS);
      on.heard?.();
    };
    silence = setTimeout(() => controller.abort(new Error("the node does not answer")), SILENCE_MS);
    try {
      const more = { accept: "text/event-stream" };
      if (lastId) more["last-event-id"] = lastId;
      const response = await fetch(path, { headers: headers(more), cache: "no-store", signal: controller.signal });
      if (!response.ok) {
        let problem = {};
        try { problem = await response.json(); } catch { /* not a problem document */ }
        throw new Refusal(problem, response.status);
      }
      heard();
      on.open?.();
      wait = FIRST_WAIT_MS;
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        heard();
        rest += value;
        let at;
        while ((at = rest.indexOf("\n\n")) >= 0) {
          take(rest.slice(0, at));
          rest = rest.slice(at + 2);
        }
      }
    } finally {
      clearTimeout(silence);
    }
  }

  function take(block) {
    let name = "message", data = "", id = null;
    for (const line of block.split("\n")) {
      if (line.startsWith("data: ")) data += line.slice(6);
      else if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("id: ")) id = line.slice(4);
    }
    if (id) lastId = id;
    if (data) on.event(name, JSON.parse(data), id);
  }

  (async () => {
    while (!stopped) {
      let problem = null;
      try { await once(); } catch (error) { problem = error; }
      if (stopped) return;
      const pause = wait * (0.75 + Math.random() / 2);
      on.lost?.(problem, pause);
      // A refusal for good reason (no token, bad pattern) does not get better by asking fast.
      wait = problem instanceof Refusal && problem.status < 500 ? LONGEST_WAIT_MS : Math.min(wait * 1.8, LONGEST_WAIT_MS);
      await new Promise((resume) => { wake = resume; setTimeout(resume, pause); });
    }
  })();

  return {
    stop() { stopped = true; controller?.abort(); wake?.(); },
    retry() { wait = FIRST_WAIT_MS; wake?.(); },
  };
}
