// Rates per topic with a minute of history, drawn as one path each.

import { byId, h, rate, reconcile, s, say } from "./draw.js";

const SAMPLES = 60, SHOWN_MAX = 12, W = 120, H = 34;
const history = new Map();
let looks = 0;
const list = byId("topics");

function spark(values) {
  const top = Math.max(...values, 1), step = W / (SAMPLES - 1), from = SAMPLES - values.length;
  const points = values.map((v, i) => `${((from + i) * step).toFixed(1)} ${(H - 2 - (v / top) * (H - 6)).toFixed(1)}`);
  const line = `M${points.join("L")}`;
  return { line, area: `${line}L${W} ${H}L${(from * step).toFixed(1)} ${H}Z` };
}

export function showTopics(topics, onPick) {
  const now = new Map(topics.topics.map((t) => [t.topic, t]));
  for (const [name, values] of history) {
    if (!now.has(name)) values.push(0);
    if (values.length > SAMPLES) values.shift();
    if (!now.has(name) && values.every((v) => v === 0)) history.delete(name);
  }
  for (const t of topics.topics) {
    // A topic that is new was silent before, which a line from zero says best.
    const values = history.get(t.topic) ?? Array(Math.min(looks, SAMPLES - 1)).fill(0);
    values.push(t.rate_per_s);
    if (values.length > SAMPLES) values.shift();
    history.set(t.topic, values);
  }
  looks += 1;
  const shown = [...topics.topics].sort((a, b) => b.rate_per_s - a.rate_per_s || a.topic.localeCompare(b.topic)).slice(0, SHOWN_MAX);
  byId("topics-empty").hidden = shown.length > 0;
  reconcile(list, shown, (t) => t.topic,
    (t) => h("li", {},
      h("button", { type: "button", title: "Listen to this topic", onclick: () => onPick(t.topic) }),
      h("span", { class: "rate" }), h("small"),
      s("svg", { class: "spark", viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", "aria-hidden": "true" }, s("path", { class: "area" }), s("path", { class: "line" }))),
    (row, t) => {
      const [name, figure, small, svg] = row.children;
      say(name, t.topic);
      const { line, area } = spark(history.get(t.topic));
      svg.children[0].setAttribute("d", area);
      svg.children[1].setAttribute("d", line);
      say(figure, rate(t.rate_per_s));
      say(small, t.summary);
    });
  const more = topics.topics.length - shown.length;
  say(byId("topics-note"), more > 0 ? `the ${shown.length} busiest; ${more} more` : "messages per second through this node");
}
