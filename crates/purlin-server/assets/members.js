// The table of members, worst first only in colour: the order stays by name so that eyes can rest.

import { byId, flash, h, micros, reconcile, say } from "./draw.js";

const body = byId("members").querySelector("tbody");
const before = new Map();

export const urlOf = (member) => {
  if (!member.http_addr) return null;
  try {
    const url = new URL(member.http_addr.includes("://") ? member.http_addr : `http://${member.http_addr}`);
    return url.protocol === "http:" || url.protocol === "https:" ? url.origin : null;
  } catch { return null; }
};

export function showMembers(view, own) {
  const members = [...view.members].sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }) || b.incarnation - a.incarnation);
  reconcile(body, members, (m) => m.id ?? m.name,
    (m) => h("tr", {},
      h("td", { class: "node-cell" }, h("strong"), h("span", { class: "here" }), h("small")),
      h("td", { class: "state-cell" }, h("span", { class: "tag" }), h("span", { class: "drain-note" })),
      h("td", { class: "zone-cell" }, h("span"), h("small")), h("td", { class: "num", "data-label": "RTT" }),
      h("td", { class: "incarnation", "data-label": "incarnation" }), h("td", { class: "accuse-cell", "data-label": "suspected by" })),
    (row, m) => {
      const [name, state, zone, rtt, incarnation, accuse] = row.children;
      say(name.querySelector("strong"), m.name);
      say(name.querySelector(".here"), m.name === own ? "this node" : "");
      const small = name.querySelector("small"), url = urlOf(m);
      if (small.dataset.url !== String(url)) {
        small.dataset.url = String(url);
        small.replaceChildren(url ? h("a", { href: `${url}/`, rel: "noreferrer" }, url.replace(/^https?:\/\//, "")) : "no HTTP");
      }
      const tag = state.querySelector(".tag");
      tag.dataset.state = m.state;
      say(tag, m.state);
      say(state.querySelector(".drain-note"), m.draining && (m.state === "alive" || m.state === "suspect") ? "draining" : "");
      say(zone.firstChild, m.zone ?? "–");
      say(zone.lastChild, m.region ?? "");
      say(rtt, m.name === own ? "self" : micros(m.state === "alive" || m.state === "suspect" ? m.rtt_us : null));
      say(incarnation, String(m.incarnation));
      const by = m.suspected_by ?? [];
      say(accuse, by.length ? by.join(", ") : "–");
      accuse.dataset.none = String(by.length === 0);
      accuse.classList.toggle("quiet", by.length === 0);
      const now = `${m.state} ${m.draining}`, was = before.get(m.id ?? m.name);
      if (was !== undefined && was !== now) flash(row);
      before.set(m.id ?? m.name, now);
    });
  say(byId("members-note"), `as ${own || "this node"} sees them, epoch ${view.epoch}`);
}
