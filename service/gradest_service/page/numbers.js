// Pre-activations: read from text, shaped, and moved by sliders.
import { el, field, select } from "./dom.js";
import { help } from "./guide.js";
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
  constructor(value, neuron, changed, chosen = () => {}) {
    this.changed = changed;
    this.chosen = chosen;
    this.text = el("input", { type: "text", spellcheck: "false", autocomplete: "off", onchange: () => this.#paste() });
    this.sliders = el("div", { class: "sliders" });
    this.sizes = el("div", { class: "row" });
    this.note = el("p", { class: "fault", role: "status" });
    this.element = el("fieldset", {},
      el("legend", {}, "Pre-activations a", help("pre-activations", "pre-activations")),
      this.sizes,
      this.sliders,
      field("or paste numbers", this.text),
      this.note,
    );
    this.set(value, neuron);
  }

  // Takes a value for an event of a neuron, given by its description; a value that does not fit is replaced by a new one.
  set(value, neuron) {
    const { event_ndim: dims, output_ndim: outputs, example_events: examples } = neuron;
    this.neuron = neuron;
    this.dims = dims;
    // units whose outputs have another shape take a fixed number of inputs each, as a mean and a log std
    this.within = outputs === dims && dims < 3 ? null : examples[0].slice(1);
    const shape = shapeOf(value);
    this.shape = this.#takes(shape) ? shape : dims === 1 ? [2] : [1, ...(this.within ?? Array(dims - 1).fill(3))];
    const fits = this.shape === shape;
    const numbers = fits ? flatten(value).map(Number) : [0.5, -1, 0.2, 0, 0, 0];
    this.numbers = Array.from({ length: this.shape.reduce((one, two) => one * two) }, (_, at) => numbers[at] ?? 0);
    this.#show();
  }

  #takes(shape) {
    const fits = shape.length === this.dims && shape.every((size) => size > 0);
    return fits && (this.within === null || this.within.every((size, at) => size === shape[at + 1]));
  }

  // Takes the event of another neuron, and keeps the numbers if it can.
  suit(neuron) {
    const before = this.shape;
    this.set(this.value(), neuron);
    return before.join() === this.shape.join();
  }

  value() {
    return nest(this.numbers, this.shape);
  }

  // The place of a number: its unit, and which of the unit's inputs it is.
  #placeOf(at) {
    const inputs = this.numbers.length / this.shape[0];
    return [Math.floor(at / inputs) + 1, (at % inputs) + 1];
  }

  nameOf(at) {
    const [unit, input] = this.#placeOf(at);
    return this.dims === 1 ? `a of unit ${unit}` : `a of unit ${unit}, ${this.within ? "input" : "class"} ${input}`;
  }

  // The place, among so many outputs, of an output that belongs to this number: its own, or the first one of its unit.
  outputOf(at, outputs) {
    if (outputs === this.numbers.length) return at;
    return (this.#placeOf(at)[0] - 1) * (outputs / this.shape[0]);
  }

  #paste() {
    try {
      let found = parseNumbers(this.text.value);
      if (shapeOf(found).length < this.dims) found = [found];
      const shape = shapeOf(found);
      const numbers = flatten(found).map(Number);
      const whole = shape.reduce((one, two) => one * two, 1) === numbers.length;
      const finite = numbers.every(Number.isFinite);
      if (!this.#takes(shape) || !whole || !finite) throw new SyntaxError("not such an array");
      this.set(found, this.neuron);
      this.changed();
    } catch {
      this.note.textContent =
        this.dims === 1
          ? "Give numbers, for example 0.5, -1, 2."
          : `Give an array of units, each with its ${this.within ? "inputs" : "classes"}, for example ${JSON.stringify(this.value())}.`;
      this.text.setAttribute("aria-invalid", "true");
    }
  }

  #show() {
    this.note.textContent = "";
    this.text.removeAttribute("aria-invalid");
    this.text.value = this.dims === 1 ? this.numbers.join(", ") : JSON.stringify(this.value());
    const names = this.dims === 1 || this.within ? ["units"] : ["units", "classes"];
    const most = this.dims === 1 ? MOST_SLIDERS : 4;
    this.sizes.replaceChildren(
      ...this.shape.slice(0, names.length).map((size, dim) => {
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
          : `a${this.#placeOf(at).map(subscript).join("‚")}`,
      ),
      input,
      out,
    );
  }

  #resize(dim, size) {
    const old = this.value();
    const shape = this.shape.map((one, at) => (at === dim ? size : one));
    const grown = ([length, ...rest], before) =>
      Array.from({ length }, (_, at) => (rest.length ? grown(rest, before?.[at]) : (before?.[at] ?? 0)));
    this.set(grown(shape, old), this.neuron);
    this.changed();
  }
}
