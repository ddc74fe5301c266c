// Pre-activations: read from text, shaped, and moved by sliders.
import { el, field, select } from "./dom.js";
import { flatten, nest, shapeOf } from "./arrays.js";

// Reads numbers that a person types: with commas or spaces between them, or as a nested array.
export function parseNumbers(text) {
  const trimmed = text.trim();
  if (/^\[/.test(trimmed)) return JSON.parse(trimmed);
  const found = trimmed
    .split(/[\s,;]+/)
    .filter(Boolean)
    .map(Number);
  if (!found.length || found.some(Number.isNaN)) throw new SyntaxError("no numbers");
  return found;
}

export const subscript = (number) => String(number).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);

const MOST_SLIDERS = 8;
const EDGE = 6;

// The pre-activations of one event: a slider for each, and a text field for all of them.
export class Numbers {
  constructor(value, dims, changed, chosen = () => {}) {
    this.changed = changed;
    this.chosen = chosen;
    this.text = el("input", { type: "text", spellcheck: "false", autocomplete: "off", onchange: () => this.#paste() });
    this.sliders = el("div", { class: "sliders" });
    this.sizes = el("div", { class: "row" });
    this.note = el("p", { class: "fault", role: "status" });
    this.element = el("fieldset", {},
      el("legend", {}, "Pre-activations a"),
      this.sizes,
      this.sliders,
      field("or paste numbers", this.text),
      this.note,
    );
    this.set(value, dims);
  }

  // Takes a value for an event of so many dims; a value of another shape is replaced by a new one.
  set(value, dims) {
    this.dims = dims;
    const shape = shapeOf(value);
    const fits = shape.length === dims && shape.every((size) => size > 0);
    this.shape = fits ? shape : dims === 1 ? [2] : [1, ...Array(dims - 1).fill(3)];
    const numbers = fits ? flatten(value).map(Number) : [0.5, -1, 0.2, 0, 0, 0];
    this.numbers = Array.from({ length: this.shape.reduce((one, two) => one * two) }, (_, at) => numbers[at] ?? 0);
    this.#show();
  }

  value() {
    return nest(this.numbers, this.shape);
  }

  nameOf(at) {
    const [, classes] = this.shape;
    return this.dims === 1
      ? `a of unit ${at + 1}`
      : `a of unit ${Math.floor(at / classes) + 1}, class ${(at % classes) + 1}`;
  }

  #paste() {
    try {
      let found = parseNumbers(this.text.value);
      if (shapeOf(found).length < this.dims) found = [found];
      const shape = shapeOf(found);
      const numbers = flatten(found).map(Number);
      const whole = shape.reduce((one, two) => one * two, 1) === numbers.length;
      const finite = numbers.every(Number.isFinite);
      if (shape.length !== this.dims || !whole || !finite) throw new SyntaxError("not such an array");
      this.set(found, this.dims);
      this.changed();
    } catch {
      this.note.textContent =
        this.dims === 1
          ? "Give numbers, for example 0.5, -1, 2."
          : "Give an array of units, each with its classes, for example [[0.5, -1, 2]].";
      this.text.setAttribute("aria-invalid", "true");
    }
  }

  #show() {
    this.note.textContent = "";
    this.text.removeAttribute("aria-invalid");
    this.text.value = this.dims === 1 ? this.numbers.join(", ") : JSON.stringify(this.value());
    const names = this.dims === 1 ? ["units"] : ["units", "classes"];
    const most = this.dims === 1 ? MOST_SLIDERS : 4;
    this.sizes.replaceChildren(
      ...this.shape.slice(0, 2).map((size, dim) => {
        const sizes = Array.from({ length: most }, (_, at) => String(at + 1)).filter((one) => dim === 0 || one !== "1");
        if (!sizes.includes(String(size))) sizes.push(String(size));
        return field(
          names[dim],
          select(sizes, String(size), (chosen) => this.#resize(dim, Number(chosen))),
        );
      }),
    );
    const many = this.numbers.length > Math.max(MOST_SLIDERS, most ** this.dims);
    this.sliders.replaceChildren(
      ...(many
        ? [el("p", { class: "quiet-text" }, `${this.numbers.length} numbers: too many for sliders`)]
        : this.numbers.map((one, at) => this.#slider(one, at))),
    );
  }

  #slider(value, at) {
    const edge = Math.max(EDGE, Math.ceil(Math.abs(value)));
    const out = el("output", {}, value.toFixed(1));
    const input = el("input", {
      type: "range",
      min: -edge,
      max: edge,
      step: 0.1,
      "aria-label": this.nameOf(at),
      oninput: () => {
        this.numbers[at] = Number(input.value);
        out.textContent = this.numbers[at].toFixed(1);
        this.text.value = this.dims === 1 ? this.numbers.join(", ") : JSON.stringify(this.value());
        this.chosen(at);
        this.changed();
      },
      onfocus: () => this.chosen(at),
    });
    input.value = value;
    return el("label", { class: "slider" },
      el("span", {},
        this.dims === 1
          ? `a${subscript(at + 1)}`
          : `a${subscript(Math.floor(at / this.shape[1]) + 1)}‚${subscript((at % this.shape[1]) + 1)}`,
      ),
      input,
      out,
    );
  }

  #resize(dim, size) {
    const old = this.value();
    const shape = this.shape.map((one, at) => (at === dim ? size : one));
    const fresh =
      this.dims === 1
        ? Array.from({ length: size }, (_, at) => old[at] ?? 0)
        : Array.from({ length: shape[0] }, (_, row) =>
            Array.from({ length: shape[1] }, (_, column) => old[row]?.[column] ?? 0),
          );
    this.set(fresh, this.dims);
    this.changed();
  }
}
