// Ties the page together: one live stream feeds every panel; its silence is shown, not hidden.

import { adoptToken, follow, keepToken, token } from "./api.js";
import { startCaches } from "./caches.js";
import { byId, bytes, clock, h, micros, rate, say, span } from "./draw.js";
import { showEvent } from "./events.js";
import { flagsChanged, startFlags } from "./flags.js";
import { drawFrame } from "./frame.js";
import { showMembers, urlOf } from "./members.js";
import { listen, startMessages } from "./messages.js";
import { showPage } from "./pages.js";
import { startPresence } from "./presence.js";
import { startProcesses } from "./processes.js";
import { showState, startState } from "./state.js";
import { startSupervisors } from "./supervisors.js";
import { showTopics } from "./topics.js";

// The node speaks at least every 2 s while the page is open; three missed beats are worth a word.
const STALE_MS = 6000, GONE_MS = 12000;
const state = { node: null, view: null, links: null, heardAt: 0, lostAt: 0, ended: null, refused: null, everLive: false };

function drawCluster() {
  if (!state.view) return;
  const own = state.node?.name ?? "";
  drawFrame(state.view.members, state.links, own);
  showMembers(state.view, own);
  const current = state.view.members.filter((m) => m.state !== "left");
  const alive = current.filter((m) => m.state === "alive").length;
  say(byId("fig-alive"), String(alive));
  say(byId("fig-total"), `of ${current.length}`);
  const suspects = current.filter((m) => m.state === "suspect").length, downs = current.filter((m) => m.state === "down").length;
  const words = [downs && `${downs} down`, suspects && `${suspects} suspect`].filter(Boolean).join(", ");
  say(byId("fig-alive-caption"), words ? `members alive, ${words}` : "members alive");
  document.querySelector(".figures").dataset.worst = downs ? "down" : suspects ? "suspect" : "none";
  const rtts = current.filter((m) => m.state === "alive" && m.name !== own && m.rtt_us !== null && m.rtt_us !== undefined).map((m) => m.rtt_us);
  say(byId("fig-rtt"), rtts.length ? micros(Math.max(...rtts)) : "–");
  say(byId("fig-epoch"), String(state.view.epoch));
}

function showNode(node) {
  state.node = node;
  document.title = `${node.name} · Purlin`;
  say(byId("node-name"), node.name);
  say(byId("node-facts"), [`cluster ${node.cluster}`, node.zone && `zone ${node.zone}`, `up ${span(node.uptime_ms)}`, node.state !== "running" && node.state].filter(Boolean).join(" · "));
  say(byId("fig-rss"), bytes(node.process.rss_bytes));
  say(byId("fig-rss-caption"), node.process.cpu_percent === null || node.process.cpu_percent === undefined ? "memory of this node" : `memory, ${node.process.cpu_percent.toFixed(1)} % CPU`);
}

/** The lamp and the notice: how fresh is what you see, and where else to look. */
function judge() {
  const now = Date.now(), quiet = state.heardAt ? now - state.heardAt : 0;
  const pulse = byId("pulse"), notice = byId("notice");
  let mood = "live";
  if (!state.everLive) mood = state.refused ? "gone" : state.lostAt && now - state.lostAt > 3000 ? "gone" : "waiting";
  else if (state.lostAt || quiet > STALE_MS) mood = (state.lostAt && now - state.lostAt > 2000) || quiet > GONE_MS ? "gone" : "stale";
  pulse.dataset.state = mood;
  const name = state.node?.name ?? "this node";
  say(byId("pulse-text"), { live: "live", waiting: "connecting", stale: `no word for ${span(Math.max(quiet, 1000))}`, gone: state.refused ? "refused" : "lost" }[mood]);
  document.documentElement.classList.toggle("stale", state.everLive && mood === "gone");
  const hide = mood === "live" || mood === "waiting" || mood === "stale";
  notice.hidden = hide;
  if (hide) return;
  if (state.refused) {
    say(byId("notice-title"), "The node refused this page.");
    say(byId("notice-text"), state.refused);
  } else {
    say(byId("notice-title"), state.ended === "shutdown" ? `${name} has stopped.` : `${name} does not answer.`);
    say(byId("notice-text"), state.heardAt ? `You see the cluster as it was at ${clock(state.heardAt)}. Trying again by itself; or go on with another node:` : "Trying again by itself.");
  }
  const others = (state.view?.members ?? []).filter((m) => m.name !== state.node?.name && m.state === "alive" && urlOf(m));
  const list = byId("notice-nodes"), key = others.map((m) => m.http_addr).join();
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const secret = token();
  list.replaceChildren(...others.map((m) => h("li", {}, h("a", { href: `${urlOf(m)}/${secret ? `#token=${encodeURIComponent(secret)}` : ""}`, rel: "noreferrer" }, m.name))));
}

adoptToken();
const shownEvents = new Set();
const live = follow("/v1/live", {
  open() { state.lostAt = 0; state.ended = null; state.refused = null; state.everLive = true; judge(); },
  heard() { state.heardAt = Date.now(); },
  lost(problem) {
    state.lostAt ||= Date.now();
    state.refused = problem?.status && problem.status < 500 ? problem.message : null;
    // Asked once, not on every retry: somebody may be reading the notice.
    if (problem?.status === 401 && !state.asked) { state.asked = true; askForToken(); }
    judge();
  },
  event(name, data, id) {
    if (name === "node") { showNode(data); drawCluster(); }
    else if (name === "members") { state.view = data; drawCluster(); }
    else if (name === "links") { state.links = data; drawCluster(); }
    else if (name === "topics") { showTopics(data, listen); say(byId("fig-rate"), rate(data.rate_per_s)); }
    else if (name === "state") {
      showState(data);
      flagsChanged({ changes: data.sets.find((set) => set.name === "flags")?.changes ?? 0 });
    } else if (name === "flags") flagsChanged(data);
    else if (name === "event") {
      if (id && shownEvents.has(id)) return;
      if (id) shownEvents.add(id);
      showEvent(data, Date.now() - data.at_ms < 5000);
    } else if (name === "end") state.ended = data.reason;
    judge();
  },
});
setInterval(judge, 1000);
byId("notice-retry").addEventListener("click", () => live.retry());
startMessages();
startProcesses();
startSupervisors();
startPresence();
startState();
startCaches();
startFlags();
showPage();

// Theme: the system's preference until somebody chooses.
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("purlin-theme", root.dataset.theme); } catch { /* lasts for this page */ }
});

// Token.
const dialog = byId("token-dialog"), field = byId("token-text");
const showToken = () => say(byId("token-label"), token() ? "Token set" : "Token");
function askForToken() {
  field.value = "";
  if (!dialog.open) dialog.showModal();
}
byId("token-open").addEventListener("click", askForToken);
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "save" && field.value.trim()) keepToken(field.value.trim());
  else if (dialog.returnValue === "forget") keepToken(null);
  field.value = "";
  showToken();
  live.retry();
});
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#token=")) { adoptToken(); showToken(); live.retry(); }
  showPage();
});
showToken();
