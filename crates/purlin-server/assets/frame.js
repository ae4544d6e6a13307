// The drawing: members as plates, links as beams. Each half of a beam shows what the node at that
// end sees, so a one-way fault is visible as a beam of two colours.

import { byId, flash, micros, reconcile, s, say } from "./draw.js";

const WIDTH = 540, HEIGHT = 384, PLATE_W = 144, PLATE_H = 80;

/** Where `count` plates stand: a post, a beam, a gable, then a ring. */
function places(count) {
  const cx = WIDTH / 2, cy = HEIGHT / 2;
  if (count === 1) return [[cx, cy]];
  if (count === 2) return [[cx - 180, cy], [cx + 180, cy]];
  if (count === 3) return [[cx, 52], [84, HEIGHT - 52], [WIDTH - 84, HEIGHT - 52]];
  const shrink = count > 8 ? 0.96 : 0.98;
  return Array.from({ length: count }, (_, i) => {
    const turn = -Math.PI / 2 + (2 * Math.PI * i) / count;
    return [cx + Math.cos(turn) * (WIDTH / 2 - 64) * shrink, cy + Math.sin(turn) * (HEIGHT / 2 - 38) * shrink];
  });
}

const drawing = byId("frame");
drawing.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
const layers = Object.fromEntries(["beams", "labels", "accusations", "plates"].map((name) => [name, drawing.appendChild(s("g", { class: name }))]));
let before = new Map();

/** The state one end gives a link, weakened by what membership says of the far end. */
function halfState(links, from, to) {
  const known = links?.nodes?.find((node) => node.name === from);
  return known?.links?.find((link) => link.to === to)?.state ?? "unknown";
}
function roundTrip(links, a, b) {
  const both = [[a, b], [b, a]].map(([from, to]) => links?.nodes?.find((n) => n.name === from)?.links?.find((l) => l.to === to)?.rtt_us).filter((us) => us !== null && us !== undefined);
  return both.length ? Math.min(...both) : null;
}

export function drawFrame(members, links, own) {
  const shown = members.filter((m) => m.state !== "left").sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const spots = places(shown.length);
  const scale = shown.length > 8 ? 0.56 : shown.length > 5 ? 0.68 : shown.length > 3 ? 0.78 : 1;
  const at = new Map(shown.map((m, i) => [m.name, spots[i]]));

  const pairs = [];
  shown.forEach((a, i) => shown.slice(i + 1).forEach((b) => pairs.push([a, b])));
  reconcile(layers.beams, pairs, ([a, b]) => `${a.name} ${b.name}`,
    () => s("g", { class: "beam-pair" }, ...[0, 1].map(() => s("g", { class: "beam-half" }, s("line", { class: "beam-edge" }), s("line", { class: "beam" })))),
    (node, [a, b]) => {
      const [x1, y1] = at.get(a.name), [x2, y2] = at.get(b.name), mx = (x1 + x2) / 2, my = (y1 + y2) / 2;
      [[a, b, x1, y1], [b, a, x2, y2]].forEach(([from, to, x, y], i) => {
        const half = node.children[i];
        const state = from.state === "down" ? "unknown" : halfState(links, from.name, to.name);
        half.dataset.state = state;
        for (const line of half.children) for (const [name, value] of Object.entries({ x1: x, y1: y, x2: mx, y2: my })) line.setAttribute(name, value.toFixed(1));
      });
    });

  // Where beams cross, only the round trips of this node itself are written down.
  const labelled = shown.length > 3 ? pairs.filter((pair) => pair.some((m) => m.name === own)) : pairs;
  reconcile(layers.labels, shown.length > 12 ? [] : labelled, ([a, b]) => `${a.name} ${b.name}`,
    () => s("g", { class: "beam-label" }, s("rect", { rx: 5, height: 26 }), s("text")),
    (node, [a, b]) => {
      const [x1, y1] = at.get(a.name), [x2, y2] = at.get(b.name);
      const us = roundTrip(links, a.name, b.name);
      const dead = a.state === "down" || b.state === "down";
      const text = dead ? "no link" : us === null ? "…" : micros(us);
      const width = 18 + text.length * 9.1;
      say(node.querySelector("text"), text);
      node.querySelector("rect").setAttribute("width", width);
      node.querySelector("rect").setAttribute("x", -width / 2);
      node.querySelector("rect").setAttribute("y", -13);
      node.setAttribute("transform", `translate(${((x1 + x2) / 2).toFixed(1)} ${((y1 + y2) / 2).toFixed(1)})`);
    });

  const accusations = shown.flatMap((m) => (m.suspected_by ?? []).filter((by) => at.has(by) && by !== m.name).map((by) => [by, m.name]));
  reconcile(layers.accusations, accusations, ([by, of]) => `${by} ${of}`,
    () => s("g", {}, s("path", { class: "accuse" }), s("path", { class: "accuse-head", d: "M0 0-13 6-9 0-13-6Z" })),
    (node, [by, of]) => {
      const [x1, y1] = at.get(by), [x2, y2] = at.get(of), dx = x2 - x1, dy = y2 - y1, far = Math.hypot(dx, dy) || 1;
      const bend = 40, kx = (x1 + x2) / 2 - (dy / far) * bend, ky = (y1 + y2) / 2 + (dx / far) * bend;
      const ex = x2 - (dx / far) * 88, ey = y2 - (dy / far) * 62, turn = (Math.atan2(ey - ky, ex - kx) * 180) / Math.PI;
      node.firstChild.setAttribute("d", `M${x1} ${y1}Q${kx} ${ky} ${ex} ${ey}`);
      node.lastChild.setAttribute("transform", `translate(${ex} ${ey}) rotate(${turn})`);
    });

  reconcile(layers.plates, shown, (m) => m.name,
    () => s("g", { class: "plate" },
      s("rect", { class: "plate-ring", x: -PLATE_W / 2, y: -PLATE_H / 2, width: PLATE_W, height: PLATE_H, rx: 9 }),
      s("rect", { class: "plate-box", x: -PLATE_W / 2, y: -PLATE_H / 2, width: PLATE_W, height: PLATE_H, rx: 9 }),
      ...[[-1, -1], [1, -1], [-1, 1], [1, 1]].map(([x, y]) => s("circle", { class: "peg", r: 3.5, cx: x * (PLATE_W / 2 - 11), cy: y * (PLATE_H / 2 - 11) })),
      s("text", { class: "plate-name", y: -10 }), s("text", { class: "plate-note", y: 15 }), s("title")),
    (node, m) => {
      const [x, y] = at.get(m.name);
      // Through the style object: the content policy forbids style attributes, and this animates.
      node.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px) scale(${scale})`;
      node.dataset.state = m.state;
      node.dataset.draining = String(Boolean(m.draining));
      const name = node.querySelector(".plate-name"), note = node.querySelector(".plate-note");
      say(name, m.name.length > 11 ? `${m.name.slice(0, 10)}…` : m.name);
      name.classList.toggle("own", m.name === own);
      const words = [m.draining && m.state !== "down" ? "draining" : m.state, m.zone].filter(Boolean).join(" · ");
      say(note, words.length > 17 ? `${words.slice(0, 16)}…` : words);
      say(node.querySelector("title"), `${m.name}: ${m.state}${m.zone ? `, zone ${m.zone}` : ""}`);
      const was = before.get(m.name);
      if (was !== undefined && was !== `${m.state} ${m.incarnation}`) flash(node);
    });
  before = new Map(shown.map((m) => [m.name, `${m.state} ${m.incarnation}`]));
  drawing.setAttribute("aria-label", `Cluster of ${shown.length}: ${shown.map((m) => `${m.name} ${m.state}`).join(", ")}`);

  const silent = links?.silent ?? [], note = byId("frame-silent");
  note.hidden = silent.length === 0;
  if (silent.length) say(note, `No word about their own links from: ${silent.join(", ")}.`);
}
