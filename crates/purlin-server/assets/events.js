// The timeline: what this node saw, newest first.

import { byId, clock, h } from "./draw.js";

const KEPT = 120;
const list = byId("events");

export function showEvent(event, fresh) {
  const row = h("li", fresh ? { class: "fresh" } : {},
    h("time", { datetime: new Date(event.at_ms).toISOString() }, clock(event.at_ms)),
    h("i", { class: "knot", "data-tone": event.tone, "aria-hidden": "true" }),
    h("div", {}, h("strong", {}, event.text), event.detail ? h("small", {}, event.detail) : null));
  list.prepend(row);
  while (list.children.length > KEPT) list.lastElementChild.remove();
  byId("events-empty").hidden = true;
}
