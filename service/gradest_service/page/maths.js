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

// Only a display takes these.
const NEEDS_DISPLAY = /\\begin\{|\\tag\b|\\\\/;

// The parts of a formula that spaces set apart, each of which may begin a line of its own.
function partsOf(latex) {
  const count = (text, what) => text.match(what)?.length ?? 0;
  const whole = (text) =>
    count(text, /(?<!\\)\{/g) === count(text, /(?<!\\)\}/g) && count(text, /\\left\b/g) === count(text, /\\right\b/g);
  const parts = [""];
  for (const piece of latex.split(/(?<=\\q?quad)(?![a-zA-Z])/)) {
    parts[parts.length - 1] += piece;
    if (whole(parts.at(-1))) parts.push("");
  }
  return parts.filter((part) => part.trim());
}

// Formulas that scroll are reached by the keyboard.
const watch = new ResizeObserver((changed) => changed.forEach(({ target }) => letScroll(target)));
function letScroll(host) {
  if (host.scrollWidth > host.clientWidth) host.tabIndex = 0;
  else host.removeAttribute("tabindex");
}

// A formula in LaTeX, shown as text until it is typeset. Screen readers read its MathML. A long one is broken into lines,
// where a part ends if it can be, else after an operator or a relation; what cannot be broken scrolls.
export function formula(latex) {
  const host = el("div", { class: "formula" }, latex);
  // each formula is typeset when the browser is idle, so that the page stays responsive
  (library ||= load())
    .then((katex) => new Promise((done) => (globalThis.requestIdleCallback ?? setTimeout)(() => done(katex))))
    .then((katex) => host.replaceChildren(...typeset(katex, latex)))
    .catch(() => {})
    .finally(() => watch.observe(host));
  return host;
}

function typeset(katex, latex) {
  const displayMode = NEEDS_DISPLAY.test(latex);
  return (displayMode ? [latex] : partsOf(latex)).map((part) => {
    const made = el("span", { class: "part" });
    const written = displayMode ? part : `\\displaystyle ${part}`;
    katex.render(written, made, { displayMode, throwOnError: false, strict: "ignore" });
    return made;
  });
}
