// The caches page: what every cache holds and did, on every node; asked while the page is open.

import { request } from "./api.js";
import { byId, bytes, h, reconcile, say } from "./draw.js";
import { isShown, whenShown } from "./pages.js";

const EVERY_MS = 2000, HEAT_ROWS = 24;
const WORDS = { local: "on each node by itself", near: "on every node that read it", partitioned: "on a few nodes, by key", replicated: "on every node" };
let timer = null, asking = false;

const count = (n) => n.toLocaleString("en");
const found = (cache) => cache.hits + cache.stale_hits;
const reads = (cache) => found(cache) + cache.misses;
const percent = (part, whole) => (whole ? `${((part / whole) * 100).toFixed(part === whole ? 0 : 1)} %` : "–");
const sum = (caches, of) => caches.reduce((total, cache) => total + of(cache), 0);

/** One summary per cache over all nodes. */
function drawSummaries(nodes) {
  const names = [...new Set(nodes.flatMap((node) => node.caches.map((cache) => cache.name)))].sort();
  byId("caches-empty").hidden = names.length > 0;
  byId("caches").hidden = names.length === 0;
  const all = names.map((name) => ({ name, caches: nodes.flatMap((node) => node.caches.filter((cache) => cache.name === name)) }));
  reconcile(byId("caches-all"), all, (one) => one.name,
    () => h("li", {}, h("span", { class: "set-name" }), h("strong"), h("small"), h("small")),
    (row, { name, caches }) => {
      const [title, rate, what, trouble] = row.children;
      say(title, name);
      say(rate, percent(sum(caches, found), sum(caches, reads)));
      say(what, `hit rate over all nodes; ${caches[0].kind}: ${WORDS[caches[0].kind] ?? ""}`);
      const incomplete = sum(caches, (cache) => cache.writes_incomplete), failed = sum(caches, (cache) => cache.load_failures), refused = sum(caches, (cache) => cache.refused_too_large);
      const bad = [incomplete && `${count(incomplete)} writes not on all nodes`, failed && `${count(failed)} loads failed`, refused && `${count(refused)} values refused for their size`].filter(Boolean);
      say(trouble, bad.join(", ") || `${count(sum(caches, (cache) => cache.entries))} entries, ${bytes(sum(caches, (cache) => cache.bytes))}`);
      row.dataset.mood = bad.length ? "bad" : "good";
    });
}

function drawRows(nodes) {
  const rows = nodes.flatMap((node) => node.caches.map((cache) => ({ node: node.node, cache })))
    .sort((a, b) => (a.cache.name < b.cache.name ? -1 : a.cache.name > b.cache.name ? 1 : a.node < b.node ? -1 : 1));
  reconcile(byId("caches").querySelector("tbody"), rows, (row) => `${row.cache.name}/${row.node}`,
    () => h("tr", {}, h("td", { class: "node-cell" }, h("strong"), h("small")), h("td", { "data-label": "node" }),
      h("td", { class: "num", "data-label": "entries" }), h("td", { class: "num", "data-label": "held" }, h("meter", { min: 0 }), h("span")),
      h("td", { class: "num", "data-label": "hit rate" }), h("td", { class: "num", "data-label": "evicted" }), h("td", { class: "num", "data-label": "loads" }), h("td", { class: "num", "data-label": "moved" })),
    (line, { node, cache }) => {
      const [name, where, entries, held, rate, evicted, loads, moved] = line.children, [meter, size] = held.children;
      say(name.children[0], cache.name);
      say(name.children[1], cache.kind);
      say(where, node);
      say(entries, count(cache.entries));
      meter.max = cache.bytes_max;
      meter.value = cache.bytes;
      meter.title = `${bytes(cache.bytes)} of ${bytes(cache.bytes_max)}`;
      say(size, `${bytes(cache.bytes)} of ${bytes(cache.bytes_max)}`);
      say(rate, reads(cache) ? `${percent(found(cache), reads(cache))} of ${count(reads(cache))}` : "no reads");
      say(evicted, count(cache.evictions));
      say(loads, count(cache.loads));
      say(moved, count(cache.moved));
    });
}

/** The hottest keys of all caches: each bar is a key's part of the reads through one node. */
function drawHeat(nodes) {
  const all = nodes.flatMap((node) => node.caches.flatMap((cache) => cache.hottest.map((hot) => ({ node: node.node, cache: cache.name, key: hot.key ?? `base64:${hot.key_base64}`, part: hot.per_mille }))));
  const rows = all.sort((a, b) => b.part - a.part).slice(0, HEAT_ROWS);
  byId("heat-empty").hidden = rows.length > 0;
  reconcile(byId("heat"), rows, (row) => JSON.stringify([row.cache, row.key, row.node]),
    () => h("li", {}, h("b"), h("small"), h("meter", { min: 0, max: 1000 }), h("span")),
    (line, row) => {
      const [key, where, meter, part] = line.children;
      say(key, row.key);
      say(where, `${row.cache} on ${row.node}`);
      meter.value = row.part;
      meter.title = `${(row.part / 10).toFixed(1)} % of the reads through ${row.node}`;
      say(part, `${(row.part / 10).toFixed(1)} %`);
    });
}

async function refresh() {
  if (!isShown("caches") || asking) return;
  asking = true;
  try {
    const { nodes } = await request("/v1/caches?everywhere=true");
    drawSummaries(nodes);
    drawRows(nodes);
    drawHeat(nodes);
    const silent = nodes.filter((node) => node.problem).map((node) => node.node);
    say(byId("caches-note"), silent.length ? `not told by ${silent.join(", ")}` : `on ${nodes.length} ${nodes.length === 1 ? "node" : "nodes"}, live`);
  } catch (error) {
    say(byId("caches-note"), error.message);
  } finally {
    asking = false;
    clearTimeout(timer);
    timer = setTimeout(refresh, EVERY_MS);
  }
}

export function startCaches() { whenShown("caches", refresh); }
