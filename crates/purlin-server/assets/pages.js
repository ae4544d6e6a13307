// Which page is shown: the part after # in the address, so that the back key and links work.

import { byId } from "./draw.js";

const PAGES = ["overview", "processes", "supervisors", "presence", "state", "caches", "flags"];
const shown = new Map(), hidden = new Map();
let current = null;

/** Runs `start` whenever the page called `name` comes into view. */
export function whenShown(name, start) { shown.set(name, start); }

/** Runs `stop` whenever the page called `name` goes out of view. */
export function whenHidden(name, stop) { hidden.set(name, stop); }

export const isShown = (name) => !byId(`page-${name}`).hidden;

/** What stands behind the page's name in the address. */
export const restOfAddress = () => decodeURIComponent(location.hash.slice(1).split("/").slice(1).join("/"));

export function showPage() {
  const asked = location.hash.slice(1).split("/")[0];
  const name = PAGES.includes(asked) ? asked : "overview";
  for (const page of PAGES) {
    byId(`page-${page}`).hidden = page !== name;
    const link = byId(`nav-${page}`);
    if (page === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  if (current !== name) hidden.get(current)?.();
  current = name;
  shown.get(name)?.();
}
