// The places of the page, each with an address, a title, and where it was scrolled to.
import { h, icon } from "./dom.js";

export const PLACES = { create: "Create", story: "Story", queue: "Queue", gallery: "Gallery", tune: "Tune", models: "Models", settings: "Settings" };
const path = (name) => (name === "create" ? "/" : `/${name}`);
const listeners = [];
const scrolled = {};
let now = null;

export function here() {
  const [, name = "", id = ""] = location.pathname.split("/");
  return { name: name in PLACES ? name : "create", id };
}

export const onPlace = (listener) => listeners.push(listener);

export function go(to, replace = false) {
  if (to !== location.pathname) history[replace ? "replaceState" : "pushState"](null, "", to);
  show();
}

export const openPlace = (name) => go(path(name));

export function title(words) {
  document.title = `${words} - Radial`;
}

function show() {
  const { name, id } = here();
  if (now && now !== name) scrolled[now] = scrollY;
  for (const place of Object.keys(PLACES)) document.getElementById(place).hidden = place !== name;
  for (const link of document.querySelectorAll("#pages a")) {
    if (link.dataset.place === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  title(PLACES[name]);
  if (now !== name) scrollTo(0, scrolled[name] ?? 0);
  now = name;
  for (const listener of listeners) listener(name, id);
}

export function startRouter() {
  document.getElementById("pages").append(...Object.entries(PLACES).map(([name, words]) =>
    h("a", { href: path(name), dataset: { place: name } }, icon(name), words, h("span", { className: "count", hidden: true }))));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || link.target || link.hasAttribute("download")) return;
    const url = new URL(link.href);
    const [, name] = url.pathname.split("/");
    if (url.origin !== location.origin || (name && !(name in PLACES))) return;
    event.preventDefault();
    go(url.pathname);
  });
  addEventListener("popstate", show);
  show();
}
