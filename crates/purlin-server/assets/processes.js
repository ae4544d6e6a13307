// The processes page: what runs on every node, who has which name, and how names change hands.

import { follow, request } from "./api.js";
import { byId, bytes, clock, h, reconcile, say, span } from "./draw.js";
import { isShown, whenHidden, whenShown } from "./pages.js";

const EVERY_MS = 2000, LIMIT = 100, NAMES_LIMIT = 200, RECENT = 200, KEPT = 120;
const count = (n) => n.toLocaleString("en");
const processBody = byId("processes").querySelector("tbody"), nameBody = byId("names").querySelector("tbody");
const searchBox = byId("processes-search"), scopeBox = byId("names-scope"), prefixBox = byId("names-prefix");

let timer = null, asking = false, again = false;

/** One card per node: how much runs there, or why that is not known. */
function drawNodes(nodes) {
  reconcile(byId("processes-nodes"), nodes, (node) => node.node,
    () => h("li", {}, h("span", { class: "set-name" }), h("strong"), h("small")),
    (row, node) => {
      const [name, running, what] = row.children, waiting = node.processes.reduce((sum, one) => sum + one.mailbox_messages, 0);
      say(name, node.node);
      say(running, node.problem ? "unknown" : `${count(node.running)} running`);
      say(what, node.problem ?? `${count(waiting)} messages waiting${node.truncated ? " in those shown" : ""}`);
      row.dataset.mood = node.problem ? "bad" : "good";
    });
}

function drawProcesses(nodes) {
  const rows = nodes.flatMap((node) => node.processes.map((process) => ({ node: node.node, process })));
  const more = nodes.some((node) => node.truncated);
  say(byId("processes-note"), `${count(rows.length)}${more ? " of more: search to see others" : ""}, live`);
  byId("processes").hidden = rows.length === 0;
  byId("processes-empty").hidden = rows.length > 0;
  if (!rows.length) say(byId("processes-empty"), searchBox.value ? "No process fits the search." : "No process runs. Start one: purlin run hello -- sleep 600");
  reconcile(processBody, rows, (row) => row.process.pid,
    () => h("tr", {}, h("td", { class: "node-cell" }, h("strong"), h("small")), h("td", {}, h("span", { class: "kind" })), h("td", { "data-label": "on" }),
      h("td", { class: "num", "data-label": "waiting" }, h("span"), h("small")), h("td", { class: "num", "data-label": "handled" }), h("td", { class: "num", "data-label": "restarts" }), h("td", { class: "num", "data-label": "up" })),
    (line, { node, process }) => {
      const [name, kind, where, waiting, handled, restarts, age] = line.children;
      say(name.children[0], process.name ?? `#${process.pid.split("#")[1]}`);
      say(name.children[1], process.summary || process.pid);
      say(kind.firstChild, process.kind);
      say(where, process.phase === "running" ? node : `${node}, ${process.phase}`);
      say(waiting.children[0], process.mailbox_messages ? `${count(process.mailbox_messages)} of ${count(process.mailbox_messages_max)}` : "0");
      say(waiting.children[1], process.mailbox_messages ? bytes(process.mailbox_bytes) : "");
      say(handled, count(process.handled));
      say(restarts, process.restarts ? count(process.restarts) : "");
      say(age, span(process.age_ms));
    });
}

async function refresh() {
  if (!isShown("processes")) return;
  if (asking) { again = true; return; }
  asking = true;
  clearTimeout(timer);
  try {
    const query = new URLSearchParams({ everywhere: "true", summaries: "true", limit: String(LIMIT) });
    if (searchBox.value) query.set("search", searchBox.value);
    const { nodes } = await request(`/v1/processes?${query}`);
    drawNodes(nodes);
    drawProcesses(nodes);
  } catch (error) {
    say(byId("processes-note"), error.message);
  } finally {
    asking = false;
    timer = setTimeout(refresh, again ? 0 : EVERY_MS);
    again = false;
  }
}

// Names: a page of the scope, read again whenever something in it changed.

let names = [], next = null, reading = false, stale = false;

async function readScopes() {
  try {
    const { scopes } = await request("/v1/registry-scopes");
    const all = [...new Set(["default", ...scopes])], chosen = scopeBox.value;
    reconcile(scopeBox, all, (scope) => scope, (scope) => h("option", { value: scope }, scope), () => {});
    if (!all.includes(chosen)) { scopeBox.value = "default"; watchNames(); }
  } catch (error) { say(byId("names-note"), error.message); }
}

async function readNames(more = false) {
  if (reading) { stale = true; return; }
  reading = true;
  const query = new URLSearchParams({ scope: scopeBox.value, prefix: prefixBox.value, limit: String(NAMES_LIMIT) });
  if (more && next) query.set("after", next);
  try {
    const page = await request(`/v1/registry?${query}`);
    names = more ? [...names, ...page.entries] : page.entries;
    next = page.next;
    drawNames();
  } catch (error) {
    say(byId("names-note"), error.message);
  } finally {
    reading = false;
    if (stale) { stale = false; readNames(); }
  }
}

function drawNames() {
  say(byId("names-note"), `${count(names.length)}${next ? " of more" : ""}, live`);
  byId("names-more").hidden = !next;
  byId("names").hidden = names.length === 0;
  byId("names-empty").hidden = names.length > 0;
  if (!names.length) say(byId("names-empty"), prefixBox.value ? "No name fits." : "Nobody has a name in this scope.");
  reconcile(nameBody, names, (entry) => entry.name,
    () => h("tr", {}, h("td", { class: "node-cell" }, h("strong"), h("small")), h("td", {}, h("span", { class: "kind" })), h("td", { "data-label": "on" }), h("td", { class: "metas" })),
    (line, entry) => {
      const [name, kind, node, metas] = line.children, said = Object.entries(entry.metadata);
      say(name.children[0], entry.name);
      say(name.children[1], entry.pid);
      say(kind.firstChild, entry.kind);
      say(node, entry.node);
      reconcile(metas, said, ([key]) => key, () => h("span", { class: "kind" }), (one, [key, value]) => say(one, `${key}=${value}`));
    });
}

// The timeline: why a name came, went or changed hands.

const TONES = { registered: "alive", updated: "left", node_back: "alive", unregistered: "left", normal: "left", node_left: "left", node_drained: "left", conflict: "suspect", crashed: "down", node_down: "down", node_restarted: "down", node_forgotten: "down", unexplained: "down" };
const place = (entry) => entry.pid.replace(/@\d+/, "");

function sentence({ name, why, before, now }) {
  if (why === "registered") return [`${name} is ${place(now)}`, now.kind];
  if (why === "updated") return [`${name} says something else of itself`, Object.entries(now.metadata).map(([key, value]) => `${key}=${value}`).join(", ")];
  if (why === "node_back") return [`${name} is ${place(now)} again`, "its node is back"];
  if (why === "conflict") return [`${name} went to ${now ? place(now) : "another"}`, `two held it${before ? `; ${place(before)} gave way to the later one` : ""}`];
  const reasons = { unregistered: "given up", normal: "ended as planned", crashed: "failed", node_down: "its node is down", node_left: "its node left", node_drained: "its node was drained", node_restarted: "its node was restarted", node_forgotten: "its node is forgotten", unexplained: "no reason heard" };
  return [`${name} is gone${before ? ` from ${place(before)}` : ""}`, reasons[why] ?? why];
}

let watching = null, pending = null;
const told = byId("changes");

function showChange(change) {
  const [text, detail] = sentence(change);
  told.prepend(h("li", Date.now() - change.at_ms < 5000 ? { class: "fresh" } : {},
    h("time", { datetime: new Date(change.at_ms).toISOString() }, clock(change.at_ms)),
    h("i", { class: "knot", "data-tone": TONES[change.why] ?? "left", "aria-hidden": "true" }),
    h("div", {}, h("strong", {}, text), h("small", {}, [detail, change.error].filter(Boolean).join(": ")))));
  while (told.children.length > KEPT) told.lastElementChild.remove();
  byId("changes-empty").hidden = true;
}

/** A burst of changes is one reading. */
function readSoon() {
  pending ??= setTimeout(() => { pending = null; readNames(); }, 150);
}

function watchNames() {
  watching?.stop();
  told.replaceChildren();
  byId("changes-empty").hidden = false;
  readNames();
  const query = new URLSearchParams({ scope: scopeBox.value, prefix: prefixBox.value, recent: String(RECENT) });
  watching = follow(`/v1/registry-watch?${query}`, {
    event(name, data) {
      if (name === "change") { showChange(data); readSoon(); }
      else if (name === "gap") readSoon();
    },
    lost(error) { if (error?.status) say(byId("names-note"), error.message); },
  });
}

export function startProcesses() {
  let typing = null;
  const soon = (run) => () => { clearTimeout(typing); typing = setTimeout(run, 200); };
  for (const form of ["processes-form", "names-form"]) byId(form).addEventListener("submit", (event) => event.preventDefault());
  searchBox.addEventListener("input", soon(refresh));
  prefixBox.addEventListener("input", soon(watchNames));
  scopeBox.addEventListener("change", watchNames);
  scopeBox.addEventListener("focus", readScopes);
  byId("names-more").addEventListener("click", () => readNames(true));
  whenShown("processes", () => { refresh(); readScopes(); watchNames(); });
  whenHidden("processes", () => { watching?.stop(); watching = null; });
}
