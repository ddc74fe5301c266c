// Typesets formulas with KaTeX, which is fetched when the first one is shown.
import { el } from "./dom.js";
import { base } from "./api.js";

let library = null;

function load() {
  document.head.append(el("link", { rel: "stylesheet", href: `${base}page/vendor/katex.min.css` }));
  return new Promise((resolve, reject) => {
    const made = el("script", { src: `${base}page/vendor/katex.min.js` });
    made.onload = () => resolve(globalThis.katex);
    made.onerror = () => reject(new Error("The library for formulas did not load."));
    document.head.append(made);
  });
}

// A formula in LaTeX, shown as text until it is typeset. Screen readers read its MathML.
export function formula(latex, display = true) {
  const host = el(display ? "div" : "span", { class: "formula" }, latex);
  if (display) host.tabIndex = 0; // it may need to scroll
  // each formula is typeset when the browser is idle, so that the page stays responsive
  (library ||= load())
    .then((katex) => new Promise((done) => (globalThis.requestIdleCallback ?? setTimeout)(() => done(katex))))
    .then((katex) => katex.render(latex, host, { displayMode: display, throwOnError: false, strict: "ignore" }))
    .catch(() => {});
  return host;
}
