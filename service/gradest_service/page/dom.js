// Makes elements without markup in strings: no text from the service is ever parsed as HTML.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "value") made.value = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const find = (selector) => document.querySelector(selector);

let count = 0;

// A control with a label above it; screen readers read `hint` with it.
export function field(label, control, hint = "") {
  control.id ||= `field-${++count}`;
  const parts = [el("label", { for: control.id }, label), control];
  if (hint) {
    parts.push(el("small", { id: `${control.id}-hint` }, hint));
    control.setAttribute("aria-describedby", `${control.id}-hint`);
  }
  return el("div", { class: "field" }, parts);
}

// Controls that are folded away on a small screen until the reader opens them.
export const folded = (...children) =>
  el("details", { class: "folded", open: matchMedia("(min-width: 821px)").matches },
    el("summary", {}, "Neuron, objective, estimators"),
    el("div", { class: "controls" }, children),
  );

export function select(names, chosen, onchange) {
  const control = el("select", { onchange: () => onchange(control.value) });
  control.append(...names.map((name) => el("option", { selected: name === chosen }, name)));
  return control;
}

// A number for people: `digits` significant digits, and signs for what is not a finite number.
export function show(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const number = Number(value);
  if (Number.isNaN(number)) return "–";
  if (!Number.isFinite(number)) return number > 0 ? "∞" : "-∞";
  if (number === 0 || (Math.abs(number) >= 1e-3 && Math.abs(number) < 1e5))
    return String(Number(number.toPrecision(digits)));
  return number.toExponential(digits - 1).replace("e+", "e");
}

// The text of a reference, with links for arXiv ids.
export function linked(text) {
  return text
    .split(/(arXiv \d{4}\.\d{4,5})/)
    .map((part) =>
      part.startsWith("arXiv ")
        ? el("a", { href: `https://arxiv.org/abs/${part.slice(6)}`, rel: "noreferrer" }, part)
        : part,
    );
}

export function save(name, content) {
  const address = URL.createObjectURL(content);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
