// Publish a message; listen to a pattern.

import { follow, request, segments } from "./api.js";
import { byId, h, say } from "./draw.js";

const KEPT = 300;
const feed = byId("feed"), holder = byId("feed-holder"), note = byId("sub-note"), go = byId("sub-go");
let stream = null, received = 0, waiting = [], drawing = false;

function append(row) {
  waiting.push(row);
  if (waiting.length > KEPT) waiting.splice(0, waiting.length - KEPT);
  if (drawing) return;
  drawing = true;
  // One repaint per frame however fast messages come.
  requestAnimationFrame(() => {
    drawing = false;
    const pinned = holder.scrollHeight - holder.scrollTop - holder.clientHeight < 60;
    feed.append(...waiting.map((make) => make()));
    waiting = [];
    while (feed.children.length > KEPT) feed.firstElementChild.remove();
    byId("feed-empty").hidden = feed.children.length > 0;
    if (pinned) holder.scrollTop = holder.scrollHeight;
    if (stream) say(note, `${received.toLocaleString("en")} received`);
  });
}
const remark = (text) => append(() => h("li", {}, h("span", { class: "said" }, text)));

function payloadText(message) {
  if (message.payload !== undefined) return message.payload;
  const text = message.payload_base64;
  const size = Math.floor((text.length * 3) / 4) - (text.match(/=*$/)?.[0].length ?? 0);
  return `${size} bytes, not text: ${text.slice(0, 64)}${text.length > 64 ? "…" : ""}`;
}

function stop() {
  stream?.stop();
  stream = null;
  say(go, "Subscribe");
  go.dataset.on = "false";
  say(note, received ? `stopped after ${received.toLocaleString("en")}` : "not subscribed");
}

export function listen(pattern) {
  stop();
  received = 0;
  feed.replaceChildren();
  byId("feed-empty").hidden = false;
  byId("sub-pattern").value = pattern;
  // A browser tab is the slow reader here: it must never hold a publisher back.
  stream = follow(`/v1/topics/${segments(pattern)}/stream?policy=drop-oldest&buffer=1024`, {
    open() { say(note, "listening"); },
    lost(problem, wait) {
      say(note, "reconnecting");
      if (problem?.status === 422 || problem?.status === 400) { remark(problem.message); stop(); return; }
      if (problem?.status === 401 || problem?.status === 403) remark(problem.message);
      else if (received) remark(`The stream was lost; trying again in ${(wait / 1000).toFixed(1)} s. Messages sent meanwhile are not here.`);
    },
    event(name, data) {
      if (name === "message") {
        received += 1;
        append(() => h("li", {}, h("span", { class: "topic", title: data.topic }, data.topic), h("span", { class: "payload" }, payloadText(data))));
      } else if (name === "lag") remark(`${data.missed.toLocaleString("en")} messages were dropped: they came faster than this tab could take them.`);
      else if (name === "end") remark(data.detail);
    },
  });
  say(go, "Stop");
  go.dataset.on = "true";
}

export function startMessages() {
  byId("sub-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (stream) stop(); else listen(byId("sub-pattern").value.trim());
  });
  byId("pub-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const topic = byId("pub-topic").value.trim(), text = byId("pub-text").value, result = byId("pub-result");
    result.dataset.bad = "false";
    say(result, "sending");
    try {
      const done = await request(`/v1/topics/${segments(topic)}`, { method: "POST", body: text, headers: { "content-type": "text/plain; charset=utf-8" } });
      say(result, done.summary ?? `published to ${done.topic}`);
    } catch (error) {
      result.dataset.bad = "true";
      const outcome = error.problem?.outcome;
      say(result, outcome === "not_done" ? `Not published: ${error.message}` : `It may or may not have been published: ${error.message}`);
    }
  });
  byId("pub-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("pub-form").requestSubmit();
  });
}
