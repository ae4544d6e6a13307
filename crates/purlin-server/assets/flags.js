// The flags page: the list at a glance, one flag to edit, its kill switch, its history, and a test.

import { request, segments } from "./api.js";
import { byId, h, reconcile, say, span } from "./draw.js";
import { isShown, restOfAddress, whenShown } from "./pages.js";

let flags = [], chosen = null, draft = null, dirty = false, seen = -1, rollouts = 0;
const form = byId("flag-form"), who = byId("flag-who"), result = byId("flag-result");
const WHO = "purlin-who";
const when = (ms) => (Date.now() - ms < 2000 ? "just now" : Date.now() - ms < 86400000 ? `${span(Date.now() - ms)} ago` : new Date(ms).toLocaleDateString());
const words = (text) => text.split(",").map((word) => word.trim()).filter(Boolean);
const percentOf = (then) => (then === "on" ? 100 : then === "off" ? 0 : then.basis_points / 100);
const percentText = (points) => `${Number((points / 100).toFixed(2))} %`;

function remember(name) { try { localStorage.setItem(WHO, name); } catch { /* asked again next time */ } }
function remembered() { try { return localStorage.getItem(WHO) ?? ""; } catch { return ""; } }

/** `on`, `off`, `share` or `killed`, and the words for it. */
function glance(flag) {
  if (flag.killed) return { state: "killed", text: "killed", share: 0 };
  if (flag.otherwise === "on") return { state: "on", text: flag.rules.length ? "on, with rules" : "on", share: 100 };
  if (flag.otherwise !== "off") return { state: "share", text: percentText(flag.otherwise.basis_points), share: flag.otherwise.basis_points / 100 };
  return flag.rules.length ? { state: "share", text: "by rules", share: 0 } : { state: "off", text: "off", share: 0 };
}

function drawList() {
  const text = byId("flags-search").value.trim().toLowerCase();
  const fit = flags.filter((flag) => `${flag.name} ${flag.description}`.toLowerCase().includes(text));
  say(byId("flags-note"), `${flags.length} ${flags.length === 1 ? "flag" : "flags"}, live`);
  byId("flags-empty").hidden = fit.length > 0;
  if (!fit.length) say(byId("flags-empty"), flags.length ? "No flag fits the search." : "There is no flag yet. Make the first one.");
  reconcile(byId("flags"), fit, (flag) => flag.name,
    (flag) => h("li", {}, h("button", { type: "button", onclick: () => choose(flag.name) }, h("span", { class: "flag-name" }, flag.name), h("small"), h("small"), h("span", { class: "gauge" }, h("span"), h("i", { "aria-hidden": "true" })))),
    (row, flag) => {
      const button = row.firstElementChild, [, what, last, gauge] = button.children, now = glance(flag);
      say(what, flag.description);
      what.hidden = !flag.description;
      say(last, flag.last_change ? `${flag.last_change.who}, ${when(flag.last_change.at_ms)}` : "");
      gauge.dataset.state = now.state;
      say(gauge.firstElementChild, now.text);
      gauge.lastElementChild.style.setProperty("--share", `${now.share}%`);
      button.setAttribute("aria-current", String(flag.name === chosen));
    });
}

async function readFlags() {
  try {
    const all = [];
    let after = "";
    do {
      const page = await request(`/v1/flags?limit=1000${after}`);
      all.push(...page.flags);
      after = page.next ? `&after=${encodeURIComponent(page.next)}` : "";
    } while (after);
    flags = all;
    drawList();
  } catch (error) { say(byId("flags-note"), error.message); }
}

/** For off, everybody, or a share: radios, a slider and a number that mean the same. */
function rolloutBox(then, changed, label) {
  const name = `rollout-${rollouts += 1}`;
  const radio = (value, text) => h("label", {}, h("input", { type: "radio", name, value, checked: kind(then) === value, onchange: tell }), text);
  const slider = h("input", { type: "range", min: "0", max: "100", step: "1", value: String(percentOf(then)), "aria-label": `${label}: percent`, oninput: () => move(slider.value, number) });
  const number = h("input", { type: "number", min: "0", max: "100", step: "0.01", value: String(percentOf(then)), "aria-label": `${label}: percent, exactly`, oninput: () => move(number.value, slider) });
  const box = h("div", { class: "rollout", role: "radiogroup", "aria-label": label }, radio("off", "Off"), radio("on", "On for everybody"), radio("share", "For a share"), h("span", { class: "share" }, slider, number, "%"));
  const share = box.querySelector(".share");
  share.hidden = kind(then) !== "share";
  function tell() {
    const picked = box.querySelector("input:checked").value;
    share.hidden = picked !== "share";
    changed(picked === "share" ? { basis_points: Math.max(0, Math.min(10000, Math.round(Number(number.value) * 100))) } : picked);
  }
  function move(value, other) { other.value = value; box.querySelector("[value=share]").checked = true; tell(); }
  return box;
}
const kind = (then) => (typeof then === "string" ? then : "share");

const localTime = (ms) => (ms === null || ms === undefined ? "" : new Date(ms - new Date(ms).getTimezoneOffset() * 60000).toISOString().slice(0, 16));
const attributeText = (attributes) => Object.entries(attributes).map(([name, values]) => `${name}=${values.join("|")}`).join(", ");
const attributesOf = (text) => Object.fromEntries(words(text).map((pair) => { const at = pair.indexOf("="); return at < 0 ? [pair, [""]] : [pair.slice(0, at).trim(), pair.slice(at + 1).split("|").map((value) => value.trim())]; }));

function drawRules() {
  const list = byId("flag-rules"), rules = draft.rules;
  const swap = (at, to) => { [rules[at], rules[to]] = [rules[to], rules[at]]; edited(); drawRules(); };
  const text = (label, value, placeholder, changed, type = "text", wide = null) => h("label", { class: wide }, h("span", {}, label), h("input", { type, value, placeholder, autocomplete: "off", spellcheck: "false", oninput: (event) => { changed(event.target.value); edited(); } }));
  list.replaceChildren(...rules.map((rule, at) => h("li", {},
    h("div", { class: "rule-head" }, h("strong", {}, `Rule ${at + 1}`),
      h("button", { type: "button", class: "ghost", disabled: at === 0, "aria-label": `Move rule ${at + 1} up`, onclick: () => swap(at, at - 1) }, "↑"),
      h("button", { type: "button", class: "ghost", disabled: at === rules.length - 1, "aria-label": `Move rule ${at + 1} down`, onclick: () => swap(at, at + 1) }, "↓"),
      h("button", { type: "button", class: "ghost", onclick: () => { rules.splice(at, 1); edited(); drawRules(); } }, "Remove")),
    text("Actors", rule.actors.join(", "), "everybody", (value) => { rule.actors = words(value); }),
    text("or groups", rule.groups.join(", "), "everybody", (value) => { rule.groups = words(value); }),
    text("with attributes", attributeText(rule.attributes), "country=de|at, plan=pro", (value) => { rule.attributes = attributesOf(value); }, "text", "wide"),
    text("from", localTime(rule.from), "", (value) => { rule.from = value ? new Date(value).getTime() : null; }, "datetime-local"),
    text("until", localTime(rule.until), "", (value) => { rule.until = value ? new Date(value).getTime() : null; }, "datetime-local"),
    h("div", { class: "wide" }, rolloutBox(rule.then, (then) => { rule.then = then; edited(); }, `Rule ${at + 1} says`)))));
}

function edited() { dirty = true; say(result, ""); result.dataset.bad = "false"; }

function drawEditor(flag, isNew) {
  draft = structuredClone({ description: flag.description, otherwise: flag.otherwise, rules: flag.rules });
  dirty = false;
  form.hidden = false;
  byId("flag-none").hidden = true;
  byId("flag-changed").hidden = true;
  byId("flag-name").hidden = byId("flag-name-label").hidden = !isNew;
  byId("flag-name").value = flag.name;
  byId("flag-description").value = flag.description;
  byId("flag-delete").hidden = byId("kill-row").hidden = isNew;
  byId("flag-otherwise").replaceChildren(rolloutBox(draft.otherwise, (then) => { draft.otherwise = then; edited(); }, "When no rule matches"));
  who.value ||= remembered();
  byId("flag-why").value = "";
  drawRules();
  say(byId("flag-title"), isNew ? "New flag" : flag.name);
  say(byId("flag-summary"), isNew ? "" : flag.summary);
  byId("kill-row").dataset.killed = String(flag.killed);
  say(byId("kill-state"), flag.killed ? "Killed: off for everybody" : "Live");
  say(byId("kill-note"), flag.killed ? "The definition below counts again once it is brought back." : "The kill switch turns it off for everybody at once, on every node.");
  const kill = byId("flag-kill");
  say(kill, flag.killed ? "Bring back" : "Kill");
  kill.className = flag.killed ? "" : "danger";
  byId("try-go").disabled = isNew;
}

function drawAudit(audit, note) {
  byId("audit-empty").hidden = audit.length > 0;
  say(byId("audit-empty"), note ?? "Changes of the chosen flag appear here.");
  byId("audit").replaceChildren(...audit.map((entry) => h("li", {},
    h("time", { datetime: new Date(entry.at_ms).toISOString(), title: when(entry.at_ms) }, new Date(entry.at_ms).toLocaleString()),
    h("div", {}, h("strong", {}, entry.who), ` ${entry.what}`, entry.why ? h("q", {}, entry.why) : null, h("small", { class: "quiet" }, `on ${entry.node}`)))));
}

let version = null;
async function readFlag(forced = false) {
  const name = chosen;
  try {
    const flag = await request(`/v1/flags/${segments(name)}`);
    if (chosen !== name) return;
    drawAudit(flag.audit ?? [], flag.audit_note && `Who changed it, when and why is shown to administrators: open the console with the address that purlin up printed.`);
    const stamp = `${flag.version} ${flag.killed}`;
    if (stamp === version && !forced) return;
    if (dirty && !forced) {
      const last = flag.last_change;
      say(byId("flag-changed-text"), `${last?.who ?? "Somebody"} changed this flag while you were editing${last?.why ? ` (“${last.why}”)` : ""}.`);
      byId("flag-changed").hidden = false;
      return;
    }
    version = stamp;
    drawEditor(flag, false);
    if (verdictAsked) ask();
  } catch (error) {
    if (chosen !== name) return;
    if (error.status === 404) { clear(`${name} is gone.`); drawAudit([]); } else fail(error);
  }
}

function clear(text) {
  form.hidden = true;
  byId("flag-none").hidden = false;
  say(byId("flag-none"), text);
  say(byId("flag-title"), "No flag chosen");
  say(byId("flag-summary"), "");
  byId("try-go").disabled = true;
  chosen = null; dirty = false; version = null;
  drawList();
}

function choose(name) {
  if (dirty && name !== chosen && !confirm(`Discard the changes to ${chosen ?? "the new flag"}?`)) return;
  dirty = false; chosen = name; version = null;
  say(result, "");
  byId("verdict").hidden = true;
  verdictAsked = false;
  history.replaceState(null, "", `#flags/${segments(name)}`);
  drawList();
  readFlag(true);
  if (matchMedia("(max-width: 1180px)").matches) byId("flag-title").scrollIntoView({ behavior: "smooth" });
}

function create() {
  if (dirty && !confirm(`Discard the changes to ${chosen ?? "the new flag"}?`)) return;
  chosen = null; version = null;
  drawList();
  drawAudit([]);
  drawEditor({ name: "", description: "", otherwise: "off", rules: [], killed: false }, true);
  byId("flag-name").focus();
}

function fail(error) {
  result.dataset.bad = "true";
  const problem = error.problem ?? {};
  if (problem.code === "version_mismatch") { byId("flag-changed").hidden = false; say(byId("flag-changed-text"), "Somebody changed this flag meanwhile; nothing was saved."); }
  say(result, problem.outcome === "not_done" ? `Not done: ${error.message}` : `It may or may not be done: ${error.message}`);
}

async function save(event) {
  event.preventDefault();
  const isNew = chosen === null, name = isNew ? byId("flag-name").value.trim() : chosen;
  if (isNew && flags.some((flag) => flag.name === name)) { fail({ message: `there is a flag ${name} already`, problem: { outcome: "not_done" } }); return; }
  const body = { ...draft, description: byId("flag-description").value, who: who.value.trim(), why: byId("flag-why").value.trim() };
  const condition = isNew ? "" : `?if_version=${encodeURIComponent(version.split(" ")[0])}`;
  remember(body.who);
  result.dataset.bad = "false";
  say(result, "saving");
  try {
    await request(`/v1/flags/${segments(name)}${condition}`, { method: "PUT", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
    dirty = false; chosen = name; version = null;
    history.replaceState(null, "", `#flags/${segments(name)}`);
    await Promise.all([readFlags(), readFlag(true)]);
    say(result, "Saved, and on its way to every node.");
  } catch (error) { fail(error); }
}

/** Asks who and why; resolves to them, or to null. */
function confirmed(title, text, yes, danger = true) {
  const dialog = byId("confirm-dialog");
  say(byId("h-confirm"), title); say(byId("confirm-text"), text); say(byId("confirm-yes"), yes); byId("confirm-yes").className = danger ? "danger" : "";
  byId("confirm-who").value = who.value || remembered();
  byId("confirm-why").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  byId(byId("confirm-who").value ? "confirm-why" : "confirm-who").focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "yes") return resolve(null);
    const said = { who: byId("confirm-who").value.trim(), why: byId("confirm-why").value.trim() };
    remember(said.who);
    who.value = said.who;
    return resolve(said);
  }, { once: true }));
}

async function toggleKill() {
  const name = chosen, killed = byId("kill-row").dataset.killed !== "true";
  const said = await confirmed(killed ? `Kill ${name}?` : `Bring ${name} back?`, killed ? "It will be off for everybody, on every node, at once. Its definition stays." : "Its definition will count again, on every node.", killed ? "Kill it" : "Bring it back", killed);
  if (!said) return;
  try {
    await request(`/v1/flags/${segments(name)}/kill`, { method: "POST", body: JSON.stringify({ killed, ...said }), headers: { "content-type": "application/json" } });
    await Promise.all([readFlags(), readFlag()]);
  } catch (error) { fail(error); }
}

async function remove() {
  const name = chosen;
  const said = await confirmed(`Delete ${name}?`, "Without a definition it is off for everybody. Its history stays.", "Delete it");
  if (!said) return;
  try {
    await request(`/v1/flags/${segments(name)}`, { method: "DELETE", body: JSON.stringify(said), headers: { "content-type": "application/json" } });
    clear(`${name} was deleted.`);
    drawAudit([]);
    readFlags();
  } catch (error) { fail(error); }
}

let verdictAsked = false;
async function ask() {
  const attributes = Object.fromEntries(Object.entries(attributesOf(byId("try-attributes").value)).map(([name, values]) => [name, values[0]]));
  const body = { actor: byId("try-actor").value.trim() || null, groups: words(byId("try-groups").value), attributes };
  const verdict = byId("verdict");
  verdictAsked = true;
  verdict.hidden = false;
  try {
    const answer = await request(`/v1/flags/${segments(chosen)}/evaluate`, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
    verdict.dataset.on = String(answer.on);
    say(byId("verdict-word"), answer.on ? "On" : "Off");
    say(byId("verdict-text"), answer.explanation);
  } catch (error) {
    verdict.dataset.on = "false";
    say(byId("verdict-word"), "?");
    say(byId("verdict-text"), error.message);
  }
}

/** Flags changed somewhere in the cluster. */
export function flagsChanged(data) {
  if (data.changes === seen) return;
  seen = data.changes;
  if (!isShown("flags")) return;
  readFlags();
  if (chosen) readFlag();
}

export function startFlags() {
  form.addEventListener("submit", save);
  byId("flag-description").addEventListener("input", edited);
  byId("flag-name").addEventListener("input", edited);
  byId("rule-add").addEventListener("click", () => {
    draft.rules.push({ actors: [], groups: [], attributes: {}, from: null, until: null, then: "on" });
    edited(); drawRules();
    byId("flag-rules").lastElementChild.querySelector("input").focus();
  });
  byId("flag-discard").addEventListener("click", () => { dirty = false; if (chosen) readFlag(true); else clear("Choose a flag on the list, or make a new one."); });
  byId("flag-reload").addEventListener("click", () => readFlag(true));
  byId("flag-kill").addEventListener("click", toggleKill);
  byId("flag-delete").addEventListener("click", remove);
  byId("flag-new").addEventListener("click", create);
  byId("flags-search").addEventListener("input", drawList);
  byId("try-form").addEventListener("submit", (event) => { event.preventDefault(); if (chosen) ask(); });
  addEventListener("beforeunload", (event) => { if (dirty) event.preventDefault(); });
  whenShown("flags", () => {
    readFlags();
    const name = restOfAddress();
    if (name && name !== chosen) choose(name); else if (chosen) readFlag();
  });
}
