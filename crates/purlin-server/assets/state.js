// The state page: replica sets with their lag, a catalogue of keys, and what one key holds.

import { request, requestText, segments } from "./api.js";
import { byId, bytes, h, reconcile, say, span } from "./draw.js";
import { isShown, whenShown } from "./pages.js";

const LIMIT = 200;
const WORDS = { crdt: "counters, sets, maps, registers, switches, texts", ephemeral: "values that may end by themselves", flags: "feature flags and their history" };
let report = null, chosen = null, shownAt = -1, loading = false, again = false, rows = [], next = null;
const setBox = byId("keys-set"), kindBox = byId("keys-kind"), prefixBox = byId("keys-prefix"), body = byId("keys").querySelector("tbody");

const count = (n) => n.toLocaleString("en");
const ago = (ms) => (ms < 2000 ? "just now" : `${span(ms)} ago`);
const when = (ms) => (ms === null || ms === undefined ? "" : Date.now() - ms < 86400000 ? ago(Math.max(0, Date.now() - ms)) : new Date(ms).toLocaleDateString());

export function showState(data) {
  report = data;
  reconcile(byId("sets"), data.sets, (set) => set.name,
    () => h("li", {}, h("span", { class: "set-name" }), h("strong"), h("small"), h("small")),
    (row, set) => {
      const [name, keys, what, trouble] = row.children;
      say(name, set.name);
      say(keys, `${count(set.keys)} ${set.keys === 1 ? "key" : "keys"}`);
      say(what, `${WORDS[set.name] ?? ""}; ${set.durable ? "kept on disk" : "in memory"}`);
      const bad = [set.unpersisted && `${count(set.unpersisted)} changes not on disk`, set.counters.updates_refused && `${count(set.counters.updates_refused)} updates refused`, set.counters.malformed && `${count(set.counters.malformed)} malformed messages`, ...set.peers.filter((peer) => peer.incompatible).map((peer) => `${peer.node}: ${peer.incompatible}`), ...set.peers.filter((peer) => peer.refused).map((peer) => `${peer.node} refuses: ${peer.refused}`)].filter(Boolean);
      say(trouble, bad.join(", ") || `${count(set.changes)} changes seen, ${count(set.counters.differed)} of ${count(set.counters.compared)} comparisons differed`);
      row.dataset.mood = bad.length ? "bad" : "good";
    });
  const names = [...new Set(data.sets.flatMap((set) => set.peers.map((peer) => peer.node)))].sort();
  byId("lag-empty").hidden = names.length > 0;
  byId("lag").hidden = names.length === 0;
  reconcile(byId("lag").querySelector("tbody"), names, (name) => name,
    (name) => h("tr", {}, h("td", { class: "node-cell" }, h("strong", {}, name)), ...data.sets.map((set) => h("td", { class: "num", "data-label": set.name }, h("span"), h("small")))),
    (row, name) => data.sets.forEach((set, at) => {
      const peer = set.peers.find((one) => one.node === name), cell = row.children[at + 1], [lag, caught] = cell.children;
      say(lag, !peer ? "away" : peer.incompatible ? "incompatible" : peer.unconfirmed_writes ? `${count(peer.unconfirmed_writes)} behind` : "in step");
      lag.className = peer && !peer.incompatible && !peer.unconfirmed_writes ? "lag-zero" : "lag-some";
      say(caught, !peer || peer.caught_up_ms_ago === null ? "not compared yet" : `compared ${ago(peer.caught_up_ms_ago)}`);
    }));
  if (isShown("state") && changesOf(setBox.value) !== shownAt) readKeys();
}

const changesOf = (name) => report?.sets.find((set) => set.name === name)?.changes ?? 0;
const nameOf = (row) => row.name ?? `base64:${row.name_base64}`;

async function readKeys(more = false) {
  if (loading) { again = true; return; }
  loading = true;
  const set = setBox.value, query = new URLSearchParams({ prefix: prefixBox.value, limit: String(LIMIT) });
  shownAt = changesOf(set);
  if (more && next) query.set("after", next);
  try {
    const page = await request(`/v1/state/${set}/keys?${query}`);
    rows = more ? [...rows, ...page.rows] : page.rows;
    next = page.next;
    drawKeys();
    if (chosen) readValue();
  } catch (error) {
    say(byId("keys-note"), error.message);
  } finally {
    loading = false;
    if (again) { again = false; readKeys(); }
  }
}

function drawKeys() {
  const kind = kindBox.value, seen = kind ? rows.filter((row) => row.kinds.includes(kind)) : rows;
  say(byId("keys-note"), `${count(seen.length)}${next ? " of more" : ""} in ${setBox.value}, live`);
  byId("keys-more").hidden = !next;
  byId("keys").hidden = seen.length === 0;
  byId("keys-empty").hidden = seen.length > 0;
  if (!seen.length) say(byId("keys-empty"), prefixBox.value || kind ? "No key fits the search." : setBox.value === "crdt" ? "Nothing here yet. Write the first: purlin counter add visits 1" : "Nothing here yet. Write the first: purlin ephemeral put greeting hello --ttl 30s");
  reconcile(body, seen, nameOf,
    (row) => h("tr", {}, h("td", {}, h("button", { type: "button", class: "key-name", onclick: () => choose(row) }, nameOf(row))), h("td"), h("td", { class: "num", "data-label": "entries" }), h("td", { class: "num", "data-label": "size" }), h("td", {}, h("span"), h("small"))),
    (line, row) => {
      const [, kinds, entries, size, last] = line.children;
      if (kinds.dataset.kinds !== row.kinds.join()) {
        kinds.dataset.kinds = row.kinds.join();
        kinds.replaceChildren(...row.kinds.map((one) => h("span", { class: "kind" }, one)));
      }
      const many = row.kinds.some((one) => one.endsWith("map") || one.endsWith("set"));
      say(entries, many ? (row.entries >= 1000 ? "1,000+" : count(row.entries)) : "");
      say(size, bytes(row.bytes));
      say(last.children[0], row.origin ? `by ${row.origin}` : `by ${row.writers.join(", ") || "nobody"}`);
      say(last.children[1], row.written_at_ms ? when(row.written_at_ms) : "keeps no time");
      line.setAttribute("aria-selected", String(chosen?.set === setBox.value && chosen?.key === nameOf(row)));
    });
}

function choose(row) {
  chosen = { set: setBox.value, key: nameOf(row), text: row.name !== undefined };
  drawKeys();
  readValue();
  if (matchMedia("(max-width: 1180px)").matches) byId("h-value").scrollIntoView({ behavior: "smooth" });
}

const stamp = (entry) => h("small", {}, `${entry.origin}, ${when(Number(entry.hlc.split(".")[0]))}${entry.expires_in_ms === undefined ? "" : `, ends in ${span(entry.expires_in_ms)}`}`);
const valueText = (entry) => entry.value ?? `not text, base64: ${entry.value_base64}`;
const inOne = (name) => encodeURIComponent(name);

/** Entries of a nested map as maps in maps: keys are divided by slashes. */
function tree(entries) {
  const root = new Map();
  for (const entry of entries) {
    let at = root;
    const keys = entry.key.split("/").map(decodeURIComponent), last = keys.pop();
    for (const key of keys) {
      if (!at.has(key)) at.set(key, { inner: new Map(), values: [] });
      at = at.get(key).inner;
    }
    if (!at.has(last)) at.set(last, { inner: new Map(), values: [] });
    at.get(last).values.push(entry);
  }
  const draw = (map) => h("ul", { class: "value-list tree" }, ...[...map].map(([key, { inner, values }]) => h("li", {}, h("b", {}, key), ...values.flatMap((entry) => [h("code", {}, valueText(entry)), stamp(entry)]), inner.size ? draw(inner) : null)));
  return draw(root);
}

const note = (text) => h("p", { class: "quiet" }, text);
const list = (of, page) => [h("ul", { class: "value-list" }, ...of), page.next ? note("and more") : null];
const switchView = async (key, row, why) => {
  const it = await request(`/v1/switches/${segments(key)}`);
  return [h("p", { class: "big-value" }, it.on ? "on" : "off"), note(`${why}; turned by ${row.writers.join(", ")}`)];
};
const counterView = async (key, row, rule) => {
  const counter = await request(`/v1/counters/${segments(key)}`);
  return [h("p", { class: "big-value" }, count(counter.value)), note(`${rule}added to by ${row.writers.join(", ")}`)];
};
const setView = async (key, rule) => {
  const set = await request(`/v1/sets/${inOne(key)}?limit=200`), all = [...set.elements, ...(set.elements_base64 ?? [])];
  return [rule ? note(rule) : null, ...list(all.map((element) => h("li", {}, h("code", {}, element))), set)];
};

/** How each kind is shown. */
const VIEWS = {
  counter: (key, row) => counterView(key, row, ""),
  grow_counter: (key, row) => counterView(key, row, "only grows; "),
  resettable_counter: (key, row) => counterView(key, row, "since it was reset; "),
  set: (key) => setView(key, ""),
  grow_set: (key) => setView(key, "only grows"),
  remove_wins_set: (key) => setView(key, "a removal wins over an add made at the same time"),
  enable_wins: (key, row) => switchView(key, row, "on wins over off said at the same time"),
  disable_wins: (key, row) => switchView(key, row, "off wins over on said at the same time"),
  async map(key) {
    const map = await request(`/v1/maps/${inOne(key)}?limit=200`);
    return list(map.entries.map((entry) => h("li", {}, h("b", {}, entry.key ?? entry.key_base64), h("code", {}, valueText(entry)), stamp(entry))), map);
  },
  async nested_map(key) {
    const map = await request(`/v1/maps/${inOne(key)}?limit=1000`);
    return [tree(map.entries), map.next ? note("and more") : null];
  },
  async multi_value(key) {
    const all = await request(`/v1/values/${segments(key)}`), values = [...all.values, ...(all.values_base64 ?? [])];
    return [values.length > 1 ? h("p", { class: "callout" }, `${values.length} values were written at the same time; write again to settle it.`) : null, ...values.map((one) => h("pre", { class: "value-text" }, one))];
  },
  async text(key, row) {
    const text = await requestText(`/v1/texts/${segments(key)}`);
    return [h("pre", { class: "value-text" }, text), note(`${count([...text].length)} characters, written by ${row.writers.join(", ")}`)];
  },
  async register(key) {
    return [h("pre", { class: "value-text" }, await requestText(`/v1/registers/${segments(key)}`))];
  },
};

const kindView = (kind, key, row) => (VIEWS[kind] ? VIEWS[kind](key, row) : [note(`This console does not know the kind ${kind}.`)]);

async function readValue() {
  const { set, key, text } = chosen, row = rows.find((one) => nameOf(one) === key), box = byId("value");
  byId("value-empty").hidden = true;
  say(byId("h-value"), key);
  if (!row) { say(byId("value-note"), "gone"); box.replaceChildren(h("p", { class: "empty" }, "This key is no longer there.")); return; }
  say(byId("value-note"), row.kinds.join(" and "));
  try {
    let parts;
    if (!text) parts = [h("p", { class: "empty" }, "Its name is not text; read it with the library.")];
    else if (set === "ephemeral") {
      const page = await request(`/v1/ephemeral?${new URLSearchParams({ prefix: key, limit: "1" })}`);
      const entry = page.entries.find((one) => one.key === key);
      parts = entry ? [h("pre", { class: "value-text" }, valueText(entry)), stamp(entry)] : [h("p", { class: "empty" }, "It has just ended.")];
    } else parts = (await Promise.all(row.kinds.map((kind) => kindView(kind, key, row)))).flat();
    if (chosen.set === set && chosen.key === key) box.replaceChildren(...parts.filter(Boolean));
  } catch (error) { box.replaceChildren(h("p", { class: "bad" }, error.message)); }
}

export function startState() {
  byId("keys-form").addEventListener("submit", (event) => event.preventDefault());
  let typing = null;
  prefixBox.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(readKeys, 200); });
  setBox.addEventListener("change", () => readKeys());
  kindBox.addEventListener("change", drawKeys);
  byId("keys-more").addEventListener("click", () => readKeys(true));
  whenShown("state", () => readKeys());
}
