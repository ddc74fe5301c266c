// Shows the view that the address names, and shows another when the address changes.
import { el, find } from "./dom.js";
import { isSavedAddress, readAddress } from "./address.js";
import { trouble } from "./api.js";
import { redrawAll } from "./charts.js";
import { help, showIfServed } from "./guide.js";

const VIEWS = {
  playground: () => import("./playground.js"),
  compare: () => import("./compare.js"),
  leaderboard: () => import("./leaderboard.js"),
  registry: () => import("./registry.js"),
  neurons: () => import("./entry.js"),
  estimators: () => import("./entry.js"),
  objectives: () => import("./entry.js"),
};
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
  const top = ["playground", "compare", "leaderboard"].includes(view) ? view : "registry";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${top}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  trouble(null);
  try {
    const module = await VIEWS[view]();
    const root = el("div", { class: "view" });
    const { title, start } = await module.show(root, { view, name, state, signal });
    if (signal.aborted) return;
    document.title = `${title} · gradest`;
    main.replaceChildren(root);
    start?.();
  } catch (error) {
    if (signal.aborted) return;
    main.replaceChildren(
      el("p", {}, "This view cannot be shown. ", el("button", { type: "button", onclick: route }, "Try again")),
    );
    trouble(error);
  }
  if (!first) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  first = false;
}

find("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  redrawAll();
  try {
    localStorage.setItem("gradest-theme", root.dataset.theme); // for theme.js, at the next visit
  } catch {
    // a browser that stores nothing
  }
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
