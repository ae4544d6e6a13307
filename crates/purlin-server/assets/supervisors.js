// The supervisors page: children wherever they are, what would move, and what happened to them.

import { follow, request } from "./api.js";
import { byId, clock, h, reconcile, say } from "./draw.js";
import { isShown, restOfAddress, whenHidden, whenShown } from "./pages.js";

const EVERY_MS = 2000, LIMIT = 200, MOVES = 500, RECENT = 200, KEPT = 120;
const count = (n) => n.toLocaleString("en");
const path = (rest) => `/v1/supervisors/${encodeURIComponent(chosen)}/${rest}`;
const prefixBox = byId("children-prefix"), childBody = byId("children").querySelector("tbody"), moveBody = byId("moves").querySelector("tbody");
let all = [], chosen = null, watching = null, timer = null, pending = null, children = [], next = null, reading = false, stale = false;

/** One card per supervisor; the chosen one is marked. */
function drawSupervisors() {
  byId("supervisors-empty").hidden = all.length > 0;
  say(byId("supervisors-note"), all.length ? "as this node knows them, live" : "");
  reconcile(byId("supervisors"), all, (one) => one.name,
    (one) => h("li", {}, h("button", { type: "button", class: "key-name", onclick: () => choose(one.name) }, one.name), h("strong"), h("small"), h("small")),
    (row, one) => {
      const [, total, where, mood] = row.children;
      say(total, `${count(one.children)} ${one.children === 1 ? "child" : "children"}`);
      say(where, one.nodes.map((node) => `${node.node}: ${count(node.children)}`).join(", ") || "on no node");
      say(mood, [one.gate === "shut" ? `stopped here: ${one.gate_reason}` : one.gate === "waiting" ? "waits for a cut to be decided" : one.planner ? `${one.planner} plans` : "nobody plans", one.paused && "rebalancing paused", one.pending_moves && `${count(one.pending_moves)} moves to make`].filter(Boolean).join(", "));
      row.dataset.mood = one.gate === "open" ? "good" : "bad";
      row.setAttribute("aria-current", String(one.name === chosen));
    });
  const one = all.find((it) => it.name === chosen);
  for (const id of ["plan-show", "plan-pause"]) byId(id).disabled = !one;
  say(byId("plan-pause"), one?.paused ? "Resume" : "Pause");
}

async function refresh() {
  clearTimeout(timer);
  if (!isShown("supervisors")) return;
  try {
    all = (await request("/v1/supervisors")).supervisors;
    const asked = restOfAddress();
    if (!all.some((one) => one.name === chosen)) choose((all.find((one) => one.name === asked) ?? all[0])?.name ?? null);
    drawSupervisors();
  } catch (error) {
    say(byId("supervisors-note"), error.message);
  } finally {
    timer = setTimeout(refresh, EVERY_MS);
  }
}

function choose(name) {
  if (name === chosen) return;
  chosen = name;
  byId("plan").hidden = true;
  say(byId("plan-note"), "");
  follows();
  drawSupervisors();
}

async function readChildren(more = false) {
  if (!chosen) { children = []; next = null; drawChildren(0); return; }
  if (reading) { stale = true; return; }
  reading = true;
  const query = new URLSearchParams({ prefix: prefixBox.value, limit: String(LIMIT) });
  if (more && next) query.set("after", next);
  try {
    const page = await request(path(`children?${query}`));
    children = more ? [...children, ...page.children] : page.children;
    next = page.next;
    drawChildren(page.count);
  } catch (error) {
    say(byId("children-note"), error.message);
  } finally {
    reading = false;
    if (stale) { stale = false; readChildren(); }
  }
}

const TONE = { running: "alive", starting: "suspect", asleep: "left", quarantined: "down", refused: "down" };

function drawChildren(total) {
  say(byId("children-note"), chosen ? `${count(children.length)} of ${count(total)} in ${chosen}, live` : "");
  byId("children-more").hidden = !next;
  byId("children").hidden = children.length === 0;
  byId("children-empty").hidden = children.length > 0;
  if (!children.length) say(byId("children-empty"), prefixBox.value ? "No child fits." : "No child yet.");
  reconcile(childBody, children, (child) => child.id,
    () => h("tr", {}, h("td", { class: "node-cell" }, h("strong"), h("small")), h("td", {}, h("span", { class: "kind" })), h("td", {}, h("span", { class: "tag" })), h("td", { "data-label": "on" }), h("td", { class: "num", "data-label": "fence" }), h("td", { class: "num", "data-label": "restarts" }), h("td", { "data-label": "because" })),
    (line, child) => {
      const [id, kind, state, node, fence, restarts, cause] = line.children;
      say(id.children[0], child.id);
      say(id.children[1], child.pid ?? "");
      say(kind.firstChild, child.kind);
      say(state.firstChild, child.state);
      state.firstChild.dataset.state = TONE[child.state] ?? "left";
      say(node, child.node ?? "");
      say(fence, String(child.fence));
      say(restarts, child.restarts ? count(child.restarts) : "");
      say(cause, child.cause ?? "");
    });
}

// The plan: shown first, made only when somebody says so.

async function showPlan() {
  try {
    const { moves, truncated } = await request(path(`plan?limit=${MOVES}`));
    byId("plan").hidden = false;
    byId("moves").hidden = moves.length === 0;
    byId("plan-go").disabled = moves.length === 0;
    say(byId("plan-note"), moves.length ? `${count(moves.length)}${truncated ? " and more" : ""} would move; nothing has yet` : "Nothing would move: the load is level and all wishes hold.");
    say(byId("plan-go"), moves.length === 1 ? "Make this move" : `Make ${truncated ? "all" : `these ${count(moves.length)}`} moves`);
    reconcile(moveBody, moves, (move) => move.id,
      () => h("tr", {}, h("td", { class: "node-cell" }, h("strong")), h("td", { "data-label": "from" }), h("td", { "data-label": "to" }), h("td", {})),
      (line, move) => {
        const [id, from, to, why] = line.children;
        say(id.firstChild, move.id); say(from, move.from); say(to, move.to); say(why, move.why);
      });
  } catch (error) { byId("plan").hidden = false; say(byId("plan-note"), error.message); }
}

async function makeMoves() {
  byId("plan-go").disabled = true;
  try {
    const { moves, paused } = await request(path("rebalance"), { method: "POST" });
    say(byId("plan-note"), `${count(moves)} ${moves === 1 ? "move is" : "moves are"} being made, one after the other${paused ? ", once this supervisor is resumed" : ""}.`);
    byId("moves").hidden = true;
    refresh();
  } catch (error) { say(byId("plan-note"), error.message); byId("plan-go").disabled = false; }
}

async function pauseOrResume() {
  const one = all.find((it) => it.name === chosen);
  try {
    await request(path(one?.paused ? "resume" : "pause"), { method: "POST" });
    refresh();
  } catch (error) { byId("plan").hidden = false; say(byId("plan-note"), error.message); }
}

// The timeline of the chosen supervisor.

const TONES = { started: "alive", restarted: "suspect", moved: "alive", quarantined: "down", slept: "left", refused: "down", removed: "left", replaced: "left", lost: "suspect", hand_off_failed: "down", split_stopped: "suspect" };
const WORDS = { started: "runs", restarted: "was started again", moved: "moved", quarantined: "is in quarantine", slept: "sleeps", refused: "could not be started", removed: "was stopped", replaced: "was started anew", lost: "had a second copy, which ended", hand_off_failed: "could not hand over its state", split_stopped: "was stopped by a cut" };
const told = byId("child-events");

function showEvent(event) {
  told.prepend(h("li", Date.now() - event.at_ms < 5000 ? { class: "fresh" } : {},
    h("time", { datetime: new Date(event.at_ms).toISOString() }, clock(event.at_ms)),
    h("i", { class: "knot", "data-tone": TONES[event.what] ?? "left", "aria-hidden": "true" }),
    h("div", {}, h("strong", {}, `${event.id} ${WORDS[event.what] ?? event.what}${event.node ? `${event.what === "moved" ? " to" : " on"} ${event.node}` : ""}`), h("small", {}, event.cause ?? ""))));
  while (told.children.length > KEPT) told.lastElementChild.remove();
  byId("child-events-empty").hidden = true;
}

function readSoon() { pending ??= setTimeout(() => { pending = null; readChildren(); }, 150); }

function follows() {
  watching?.stop();
  watching = null;
  told.replaceChildren();
  byId("child-events-empty").hidden = false;
  readChildren();
  if (!chosen) return;
  watching = follow(path(`events?recent=${RECENT}`), {
    event(name, data) {
      if (name === "child") { showEvent(data); readSoon(); }
      else if (name === "gap") readSoon();
    },
  });
}

export function startSupervisors() {
  let typing = null;
  byId("children-form").addEventListener("submit", (event) => event.preventDefault());
  prefixBox.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(readChildren, 200); });
  byId("children-more").addEventListener("click", () => readChildren(true));
  byId("plan-show").addEventListener("click", showPlan);
  byId("plan-go").addEventListener("click", makeMoves);
  byId("plan-pause").addEventListener("click", pauseOrResume);
  whenShown("supervisors", () => { if (chosen) follows(); refresh(); });
  whenHidden("supervisors", () => { watching?.stop(); watching = null; });
}
