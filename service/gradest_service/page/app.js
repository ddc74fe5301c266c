// Which view is shown: the address after # says it, and what it holds.
import { el, find } from "./dom.js";
import { trouble } from "./api.js";
import { redrawAll } from "./charts.js";

const VIEWS = {
  playground: () => import("./playground.js"),
  compare: () => import("./compare.js"),
  registry: () => import("./registry.js"),
  neurons: () => import("./entry.js"),
  estimators: () => import("./entry.js"),
  objectives: () => import("./entry.js"),
};
const main = find("#main");
let leave = new AbortController();
let first = true;
let written = null; // the address, where the view that is shown has written it

// The state that the address holds, as JSON after a question mark.
function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  let state = {};
  try {
    state = JSON.parse(decodeURIComponent(query) || "{}");
  } catch {
    trouble(new Error("The link's state cannot be read; this is the view without it."));
  }
  return { view: view in VIEWS ? view : "playground", name: decodeURIComponent(rest.join("/")), state };
}

// Keeps the state in the address, without a step in the history.
export function keep(view, state) {
  written = `#/${view}?${encodeURIComponent(JSON.stringify(state))}`;
  history.replaceState(null, "", written);
}

async function route() {
  if (location.hash === "#main" || location.hash === written) return;
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const { view, name, state } = read();
  const top = ["playground", "compare"].includes(view) ? view : "registry";
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
    main.replaceChildren(el("p", {}, "There is nothing to show. ", el("button", { type: "button", onclick: route }, "Try again")));
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
    // a browser that keeps nothing
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
find(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
route();
