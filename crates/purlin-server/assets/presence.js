// The presence wall: which topics somebody is in, who is in one of them and where, and how they come
// and go. Counts come without rows; only the chosen topic's rows are kept here.

import { follow } from "./api.js";
import { byId, clock, flash, h, reconcile, say, span } from "./draw.js";
import { restOfAddress, whenHidden, whenShown } from "./pages.js";

const TOPICS_SHOWN = 200, PEOPLE_SHOWN = 300, PLACES_SHOWN = 6, KEPT = 120, TOLD_AT_ONCE = 12, DRAW_MS = 120, HUES = 6;
const count = (n) => n.toLocaleString("en");
const topicsBox = byId("rooms-prefix"), searchBox = byId("wall-search");

// A node has the same colour everywhere on the page; its name always stands beside it.
const hues = new Map();
const hueOf = (node) => { if (!hues.has(node)) hues.set(node, hues.size % HUES); return String(hues.get(node)); };

// Topics: only numbers.

const topics = new Map();
let counting = null, topicsTimer = null, countsComplete = false;

function drawTopics() {
  topicsTimer = null;
  const rows = [...topics.values()].sort((a, b) => b.count - a.count || a.topic.localeCompare(b.topic));
  const people = rows.reduce((sum, row) => sum + row.count, 0), most = rows[0]?.count ?? 1;
  say(byId("rooms-note"), rows.length ? `${count(people)} in ${count(rows.length)} ${rows.length === 1 ? "topic" : "topics"}, live` : countsComplete ? "live" : "reading");
  byId("rooms-empty").hidden = rows.length > 0 || !countsComplete;
  byId("rooms-more").hidden = rows.length <= TOPICS_SHOWN;
  say(byId("rooms-more"), `the ${count(TOPICS_SHOWN)} fullest; name a beginning to see others`);
  reconcile(byId("rooms"), rows.slice(0, TOPICS_SHOWN), (row) => row.topic,
    (row) => h("li", {}, h("button", { type: "button", onclick: () => { location.hash = `presence/${encodeURIComponent(row.topic)}`; } },
      h("span", { class: "room-name" }), h("span", { class: "room-count" }), h("span", { class: "room-bar", "aria-hidden": "true" }), h("small"))),
    (line, row) => {
      const button = line.firstChild, [name, number, bar, nodes] = button.children;
      say(name, row.topic);
      say(number, count(row.count));
      const parts = Object.entries(row.nodes);
      bar.style.setProperty("--share", `${Math.max(4, (row.count / most) * 100)}%`);
      reconcile(bar, parts, ([node]) => node, ([node]) => h("i", { "data-hue": hueOf(node) }), (part, [, n]) => { part.style.flexGrow = String(n); });
      say(nodes, parts.map(([node, n]) => `${node} ${count(n)}`).join(" · "));
      button.setAttribute("aria-current", String(row.topic === chosen));
    });
  // Somebody who comes to look sees something.
  if (chosen === null && rows.length) choose(rows[0].topic);
}

function countTopics() {
  counting?.stop();
  topics.clear();
  countsComplete = false;
  const query = new URLSearchParams({ prefix: topicsBox.value });
  counting = follow(`/v1/presence-counts?${query}`, {
    event(name, data) {
      if (name !== "counts") return;
      if (data.first) { topics.clear(); countsComplete = false; }
      for (const row of data.topics) row.count ? topics.set(row.topic, row) : topics.delete(row.topic);
      countsComplete ||= data.last;
      topicsTimer ??= setTimeout(drawTopics, DRAW_MS);
    },
    lost(error) { if (error?.status) say(byId("rooms-note"), error.message); },
  });
}

// The wall: a copy of one topic, kept by pages and diffs.

let chosen = null, syncing = null, rows = new Map(), people = new Map(), names = null, complete = false, wallTimer = null;
const fresh = new Set(), told = byId("comings");

/** Versions are `milliseconds.counter.author`, and of one row the author stays. */
function isLater(version, than) {
  const [a, b] = [version, than].map((one) => one.split(".").map(Number));
  return a[0] > b[0] || (a[0] === b[0] && a[1] > b[1]);
}

function put(entry) {
  const known = rows.get(entry.id);
  if (known && !isLater(entry.version, known.version)) return;
  rows.set(entry.id, entry);
  if (!people.has(entry.key)) { people.set(entry.key, new Map()); names = null; }
  people.get(entry.key).set(entry.id, entry);
}

function drop(id) {
  const known = rows.get(id);
  if (!known) return;
  rows.delete(id);
  const places = people.get(known.key);
  places.delete(id);
  if (!places.size) { people.delete(known.key); names = null; }
}

const metas = (entry) => Object.entries(entry.metadata).map(([name, value]) => `${name}=${value}`).join(", ");
/** Hybrid times begin with the milliseconds of a wall clock. */
const since = (entry) => span(Math.max(0, Date.now() - Number(entry.since.split(".")[0])));

function drawWall() {
  wallTimer = null;
  const on = new Map();
  for (const entry of rows.values()) on.set(entry.node, (on.get(entry.node) ?? 0) + 1);
  const nodes = [...on].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  reconcile(byId("wall-nodes"), nodes, ([node]) => node,
    ([node]) => h("li", { "data-hue": hueOf(node) }, h("span", { class: "set-name" }), h("strong"), h("small", {}, "present here")),
    (line, [node, n]) => { say(line.children[0], node); say(line.children[1], count(n)); });
  names ??= [...people.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const wanted = searchBox.value.trim().toLowerCase();
  const fits = (key) => key.toLowerCase().includes(wanted) || [...people.get(key).values()].some((entry) => entry.node.toLowerCase() === wanted || metas(entry).toLowerCase().includes(wanted));
  const found = wanted ? names.filter(fits) : names, shown = found.slice(0, PEOPLE_SHOWN);
  say(byId("wall-note"), complete ? `${count(people.size)} ${people.size === 1 ? "key" : "keys"}, ${count(rows.size)} ${rows.size === 1 ? "presence" : "presences"}, live` : `reading, ${count(rows.size)} so far`);
  byId("wall-more").hidden = found.length <= shown.length;
  say(byId("wall-more"), `and ${count(found.length - shown.length)} more: search to see them`);
  byId("wall-empty").hidden = shown.length > 0 || !complete;
  say(byId("wall-empty"), wanted ? "Nobody fits the search." : "Nobody is here any more.");
  reconcile(byId("wall"), shown, (key) => key,
    () => h("li", { class: "person" }, h("strong"), h("ul")),
    (card, key) => {
      const [title, list] = card.children, places = [...people.get(key).values()].sort((a, b) => a.since.localeCompare(b.since) || a.id.localeCompare(b.id));
      say(title, key);
      const more = places.length - PLACES_SHOWN;
      reconcile(list, places.slice(0, PLACES_SHOWN), (entry) => entry.id,
        (entry) => h("li", {}, h("b", { "data-hue": hueOf(entry.node) }), h("span"), h("small")),
        (line, entry) => {
          const [node, what, age] = line.children;
          say(node, entry.node);
          say(what, metas(entry));
          say(age, `for ${since(entry)}`);
        });
      card.dataset.more = more > 0 ? `and ${count(more)} more of this key` : "";
      if (fresh.has(key)) flash(card);
    });
  fresh.clear();
}

const REASONS = { unregistered: "said goodbye", expired: "its lease was not renewed", normal: "its process ended", crashed: "its process failed", node_down: "its node is down", node_left: "its node left", node_drained: "its node was drained and it did not come back", node_restarted: "its node was restarted", node_forgotten: "its node is forgotten", unexplained: "no reason heard" };
const BAD = new Set(["crashed", "node_down", "node_restarted", "node_forgotten", "unexplained"]);

function tell(tone, text, detail) {
  const now = Date.now();
  told.prepend(h("li", { class: "fresh" }, h("time", { datetime: new Date(now).toISOString() }, clock(now)),
    h("i", { class: "knot", "data-tone": tone, "aria-hidden": "true" }), h("div", {}, h("strong", {}, text), detail ? h("small", {}, detail) : null)));
  while (told.children.length > KEPT) told.lastElementChild.remove();
  byId("comings-empty").hidden = true;
}

/** Many at once are one line: a node that goes takes thousands along. */
function tellAll(tone, some, one, many) {
  if (some.length > TOLD_AT_ONCE) tell(tone, ...many(some)); else for (const it of some) tell(tone, ...one(it));
}

function changed({ name, before, now }) {
  if (before === null) return `${name}=${now}`;
  return now === null ? `no ${name} any more` : `${name} ${before} → ${now}`;
}

function applyDiff(diff) {
  for (const { id } of diff.leaves) drop(id);
  for (const { was, entry } of diff.updates) { if (was !== entry.id) drop(was); put(entry); fresh.add(entry.key); }
  for (const entry of diff.joins) { put(entry); fresh.add(entry.key); }
  if (!complete) return; // What was already so when this page opened is no news.
  const whys = Map.groupBy ? [...Map.groupBy(diff.leaves, (leave) => leave.why)] : diff.leaves.map((leave) => [leave.why, [leave]]);
  for (const [why, leaves] of whys) {
    tellAll(BAD.has(why) ? "down" : "left", leaves, ({ key, node }) => [`${key} went`, `${REASONS[why] ?? why}, on ${node}`],
      (all) => [`${count(all.length)} went`, `${REASONS[why] ?? why}, on ${[...new Set(all.map((one) => one.node))].join(", ")}`]);
  }
  tellAll("suspect", diff.updates, ({ was, entry, fields }) => [was === entry.id ? `${entry.key} changed` : `${entry.key} moved to ${entry.node}`, fields.map(changed).join(", ") || `on ${entry.node}`],
    (all) => [`${count(all.length)} changed`, `on ${[...new Set(all.map(({ entry }) => entry.node))].join(", ")}`]);
  tellAll("alive", diff.joins, (entry) => [`${entry.key} came`, [`on ${entry.node}`, metas(entry)].filter(Boolean).join(", ")],
    (all) => [`${count(all.length)} came`, `on ${[...new Set(all.map((one) => one.node))].join(", ")}`]);
}

function forget() {
  rows = new Map(); people = new Map(); names = null; complete = false;
}

function choose(topic) {
  syncing?.stop();
  chosen = topic;
  forget();
  fresh.clear();
  told.replaceChildren();
  byId("comings-empty").hidden = false;
  say(byId("h-wall"), topic);
  byId("wall-none").hidden = true;
  byId("wall-form").hidden = false;
  topicsTimer ??= setTimeout(drawTopics, 0);
  drawWall();
  syncing = follow(`/v1/presence-sync?${new URLSearchParams({ topic })}`, {
    event(name, data) {
      if (name === "page") {
        if (data.first) forget();
        data.entries.forEach(put);
        complete = data.last;
      } else if (name === "diff") applyDiff(data);
      wallTimer ??= setTimeout(drawWall, DRAW_MS);
    },
    lost(error) { if (error?.status) say(byId("wall-note"), error.message); },
  });
}

export function startPresence() {
  let typing = null, ages = null;
  for (const form of ["rooms-form", "wall-form"]) byId(form).addEventListener("submit", (event) => event.preventDefault());
  topicsBox.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(countTopics, 200); });
  searchBox.addEventListener("input", () => { wallTimer ??= setTimeout(drawWall, DRAW_MS); });
  whenShown("presence", () => {
    if (!counting) countTopics();
    ages ??= setInterval(() => { wallTimer ??= setTimeout(drawWall, 0); }, 5000);
    const topic = restOfAddress();
    if (topic && (topic !== chosen || !syncing)) choose(topic);
    else if (!topic && chosen !== null && !syncing) choose(chosen);
  });
  whenHidden("presence", () => {
    counting?.stop(); syncing?.stop(); clearInterval(ages);
    counting = syncing = ages = null;
  });
}
