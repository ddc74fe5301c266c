// Shows the view that the address names, and shows another when the address changes.
import { el, find } from "./dom.js";
import { isSavedAddress, readAddress } from "./address.js";
import { trouble } from "./api.js";
import { redrawAll } from "./charts.js";
import { help, showIfServed } from "./guide.js";
import { remember } from "./memory.js";

const VIEWS = {
  playground: () => import("./playground.js"),
  compare: () => import("./compare.js"),
  leaderboard: () => import("./leaderboard.js"),
  registry: () => import("./registry.js"),
  start: () => import("./start.js"),
  neurons: () => import("./entry.js"),
  estimators: () => import("./entry.js"),
  objectives: () => import("./entry.js"),
};
// The links of views that have none of their own.
const TOPS = { neurons: "registry", estimators: "registry", objectives: "registry" };
const main = find("#main");
let leave = new AbortController();
let first = true;

async function route() {
  if (location.hash === "#main" || isSavedAddress()) return;
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const { view: named, name, state } = readAddress();
  const view = named in VIEWS ? named : "playground";
  markLink(TOPS[view] ?? view);
  trouble(null);
  try {
    const module = await VIEWS[view]();
    const root = el("div", { class: "view" });
    const { title, start, top, focus } = await module.show(root, { view, name, state, signal });
    if (signal.aborted) return;
    document.title = `${title} · gradest`;
    if (top) markLink(top);
    main.replaceChildren(root);
    place(focus);
    start?.();
  } catch (error) {
    if (signal.aborted) return;
    main.replaceChildren(
      el("p", {}, "This view cannot be shown. ", el("button", { type: "button", onclick: route }, "Try again")),
    );
    trouble(error);
    place();
  }
}

// Marks the link to the view that is shown.
function markLink(top) {
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${top}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

// Begins at the top of a view, with the focus on the element that it wants, else on the view unless it is the first.
function place(focus) {
  (focus ?? (first ? null : main))?.focus({ preventScroll: true });
  if (!first) scrollTo({ top: 0, behavior: "instant" });
  first = false;
}

find("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  redrawAll();
  remember("gradest-theme", root.dataset.theme); // for theme.js, at the next visit
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
find(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
showIfServed(find("#guide"), "index.html");
find("#key-help").append(help("key", "API keys"));
addEventListener("hashchange", route);
route();
