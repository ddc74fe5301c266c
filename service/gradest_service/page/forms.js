// Forms made from JSON Schemas: a plugin's options appear as its schema states them.
import { el, field, select } from "./dom.js";

const resolve = (schema, root) => (schema.$ref ? resolve({ ...root.$defs[schema.$ref.split("/").pop()], ...schema, $ref: undefined }, root) : schema);

// What kind of control an option has, and whether null is one of its values.
function kind(schema, root) {
  const whole = resolve(schema, root);
  const parts = (whole.anyOf ?? whole.allOf ?? [whole]).map((part) => resolve(part, root));
  const some = parts.filter((part) => part.type !== "null");
  const part = some.length === 1 ? some[0] : { type: "any" };
  return { ...part, nullable: some.length < parts.length };
}

function control(found, value, changed) {
  if (found.enum && !found.nullable) return select(found.enum.map(String), String(value), changed);
  if (found.type === "boolean") return el("input", { type: "checkbox", checked: value === true, onchange: changed });
  const text = value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
  if (["integer", "number"].includes(found.type)) {
    const step = found.type === "integer" ? (found.multipleOf ?? 1) : "any";
    return el("input", { type: "number", value: text, min: found.minimum, max: found.maximum, step, oninput: changed });
  }
  const placeholder = found.type === "string" ? "" : "a number or [1, 2, …]";
  return el("input", { type: "text", value: text, placeholder, spellcheck: "false", autocomplete: "off", oninput: changed });
}

function read(input, found) {
  if (found.type === "boolean") return input.checked;
  const text = input.value.trim();
  if (text === "") return found.nullable ? null : undefined;
  if (found.enum && !found.nullable) return found.enum.find((one) => String(one) === text);
  if (found.type === "string") return text;
  const number = Number(text);
  if (!Number.isNaN(number)) return number;
  try {
    return JSON.parse(text);
  } catch {
    return text; // the service says what is wrong with it
  }
}

// The options of one plugin, those that differ from their defaults.
export function optionsForm(schema, given, changed) {
  const fields = Object.entries(schema.properties ?? {}).map(([name, option]) => {
    const found = kind(option, schema);
    const input = control(found, name in given ? given[name] : option.default, changed);
    const required = (schema.required ?? []).includes(name);
    if (required) input.required = true;
    return { name, found, input, option, element: field(required ? `${name} (required)` : name, input, option.description ?? "") };
  });
  return {
    element: el("div", { class: "options" }, fields.map((one) => one.element)),
    values: () =>
      Object.fromEntries(
        fields
          .map(({ name, found, input, option }) => [name, read(input, found), option.default])
          .filter(([, value, usual]) => value !== undefined && JSON.stringify(value) !== JSON.stringify(usual))
          .map(([name, value]) => [name, value]),
      ),
  };
}

export const nameOf = (spec) => (typeof spec === "string" ? spec : spec.name);
export const optionsOf = (spec) => (typeof spec === "string" ? {} : Object.fromEntries(Object.entries(spec).filter(([key]) => key !== "name")));
export const specOf = (name, options) => (Object.keys(options).length ? { name, ...options } : name);
export const labelOf = (spec) => {
  const options = Object.entries(optionsOf(spec)).map(([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`);
  return options.length ? `${nameOf(spec)}(${options.join(", ")})` : nameOf(spec);
};

// A plugin of one kind with its options: `spec` is how the API names it.
export class Choice {
  constructor(label, descriptions, spec, changed) {
    this.descriptions = new Map(descriptions.map((one) => [one.name, one]));
    this.changed = changed;
    this.summary = el("p", { class: "quiet-text" });
    this.place = el("div");
    const name = this.descriptions.has(nameOf(spec)) ? nameOf(spec) : descriptions[0].name;
    this.select = select([...this.descriptions.keys()], name, () => {
      this.#show({});
      changed();
    });
    this.element = el("fieldset", {}, el("legend", {}, label), field("name", this.select), this.summary, this.place);
    this.#show(name === nameOf(spec) ? optionsOf(spec) : {});
  }

  get description() {
    return this.descriptions.get(this.select.value);
  }

  spec() {
    return specOf(this.select.value, this.form.values());
  }

  // Sets an option that another choice implies, where there is one of this name and it is something else.
  imply(name, value) {
    const option = this.description.options.properties?.[name];
    const values = this.form.values();
    if (option && (values[name] ?? option.default) !== value) this.#show({ ...values, [name]: value });
  }

  #show(options) {
    this.summary.textContent = this.description.summary;
    this.form = optionsForm(this.description.options, options, this.changed);
    this.place.replaceChildren(this.form.element);
  }
}

// Several estimators, each with a box to tick and its options.
export class Estimators {
  constructor(descriptions, fitting, specs, changed) {
    const given = new Map(specs.map((spec) => [nameOf(spec), spec]));
    this.order = specs.map(nameOf);
    this.items = descriptions
      .filter((one) => fitting.includes(one.name))
      .map((one) => {
        const box = el("input", { type: "checkbox", checked: given.has(one.name), id: `use-${one.name}` });
        const form = optionsForm(one.options, optionsOf(given.get(one.name) ?? one.name), changed);
        const options = el("details", { hidden: !box.checked || !Object.keys(one.options.properties ?? {}).length }, el("summary", {}, `options of ${one.name}`), form.element);
        box.addEventListener("change", () => {
          options.hidden = !box.checked || !form.element.childElementCount;
          this.order = this.order.filter((name) => name !== one.name);
          if (box.checked) this.order.push(one.name);
          changed();
        });
        const item = el("li", {}, el("label", { for: box.id, title: one.summary }, box, ` ${one.name}`), options);
        return { name: one.name, box, form, item, description: one };
      });
    this.element = el("ul", { class: "estimators" }, this.items.map((one) => one.item));
  }

  // Those that are ticked, in the order in which they were.
  specs() {
    const ticked = new Map(this.items.filter((one) => one.box.checked).map((one) => [one.name, one]));
    return this.order.filter((name) => ticked.has(name)).map((name) => specOf(name, ticked.get(name).form.values()));
  }

  tick(all) {
    for (const { box } of this.items) if (box.checked !== all) box.click();
  }
}

// Numbers that a person types: with commas or spaces between them, or as a nested array.
export function parseNumbers(text) {
  const trimmed = text.trim();
  if (/^\[/.test(trimmed)) return JSON.parse(trimmed);
  const found = trimmed.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (!found.length || found.some(Number.isNaN)) throw new SyntaxError("no numbers");
  return found;
}

export const flatten = (value) => (Array.isArray(value) ? value.flatMap(flatten) : [value]);

export function shapeOf(value) {
  return Array.isArray(value) ? [value.length, ...shapeOf(value[0])] : [];
}

export function nest(flat, shape) {
  if (shape.length < 2) return [...flat];
  const size = flat.length / shape[0];
  return Array.from({ length: shape[0] }, (_, row) => nest(flat.slice(row * size, (row + 1) * size), shape.slice(1)));
}

const MOST_SLIDERS = 8;
const EDGE = 6;

// Pre-activations of one event: a slider each, and all of them as text.
export class Numbers {
  constructor(value, dims, changed, chosen = () => {}) {
    this.changed = changed;
    this.chosen = chosen;
    this.text = el("input", { type: "text", spellcheck: "false", autocomplete: "off", onchange: () => this.#paste() });
    this.sliders = el("div", { class: "sliders" });
    this.sizes = el("div", { class: "row" });
    this.note = el("p", { class: "fault", role: "status" });
    this.element = el("fieldset", {}, el("legend", {}, "Pre-activations a"), this.sizes, this.sliders, field("or paste numbers", this.text), this.note);
    this.set(value, dims);
  }

  // A value for units of so many dims; one of another shape gives way to a fresh one.
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
    return this.dims === 1 ? `a of unit ${at + 1}` : `a of unit ${Math.floor(at / classes) + 1}, class ${(at % classes) + 1}`;
  }

  #paste() {
    try {
      let found = parseNumbers(this.text.value);
      if (shapeOf(found).length < this.dims) found = [found];
      const shape = shapeOf(found);
      const numbers = flatten(found).map(Number);
      const whole = shape.reduce((one, two) => one * two, 1) === numbers.length;
      if (shape.length !== this.dims || !whole || numbers.some((one) => !Number.isFinite(one))) throw new SyntaxError("no array");
      this.set(found, this.dims);
      this.changed();
    } catch {
      this.note.textContent = this.dims === 1 ? "Give numbers, as 0.5, -1, 2." : "Give an array of units, each with its classes, as [[0.5, -1, 2]].";
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
        return field(names[dim], select(sizes, String(size), (chosen) => this.#resize(dim, Number(chosen))));
      }),
    );
    const many = this.numbers.length > Math.max(MOST_SLIDERS, most ** this.dims);
    this.sliders.replaceChildren(...(many ? [el("p", { class: "quiet-text" }, `${this.numbers.length} numbers, without sliders`)] : this.numbers.map((one, at) => this.#slider(one, at))));
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
    return el("label", { class: "slider" }, el("span", {}, this.dims === 1 ? `a${subscript(at + 1)}` : `a${subscript(Math.floor(at / this.shape[1]) + 1)}‚${subscript((at % this.shape[1]) + 1)}`), input, out);
  }

  #resize(dim, size) {
    const old = this.value();
    const shape = this.shape.map((one, at) => (at === dim ? size : one));
    const fresh = this.dims === 1 ? Array.from({ length: size }, (_, at) => old[at] ?? 0) : Array.from({ length: shape[0] }, (_, row) => Array.from({ length: shape[1] }, (_, column) => old[row]?.[column] ?? 0));
    this.set(fresh, this.dims);
    this.changed();
  }
}

export const subscript = (number) => String(number).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
