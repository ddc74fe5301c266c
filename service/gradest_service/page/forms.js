// Builds forms from JSON Schemas: a plugin's options appear as its schema describes them.
import { el, field, select } from "./dom.js";
import { help, helpOf } from "./guide.js";

const resolve = (schema, root) =>
  schema.$ref ? resolve({ ...root.$defs[schema.$ref.split("/").pop()], ...schema, $ref: undefined }, root) : schema;

// The schema that decides which control an option gets, and whether null is one of its values.
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
  return el("input", {
    type: "text",
    value: text,
    placeholder,
    spellcheck: "false",
    autocomplete: "off",
    oninput: changed,
  });
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

// A form for the options of one plugin; its values are the options that differ from their defaults.
export function optionsForm(schema, given, changed) {
  const fields = Object.entries(schema.properties ?? {}).map(([name, option]) => {
    const found = kind(option, schema);
    const input = control(found, name in given ? given[name] : option.default, changed);
    const required = (schema.required ?? []).includes(name);
    if (required) input.required = true;
    return {
      name,
      found,
      input,
      option,
      element: field(required ? `${name} (required)` : name, input, option.description ?? ""),
    };
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
export const optionsOf = (spec) =>
  typeof spec === "string" ? {} : Object.fromEntries(Object.entries(spec).filter(([key]) => key !== "name"));
export const specOf = (name, options) => (Object.keys(options).length ? { name, ...options } : name);
export const labelOf = (spec) => {
  const options = Object.entries(optionsOf(spec)).map(
    ([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
  return options.length ? `${nameOf(spec)}(${options.join(", ")})` : nameOf(spec);
};

// A choice of one plugin of a kind, such as "neurons", with its options; `spec` is the form in which the API takes it.
export class Choice {
  constructor(label, kind, descriptions, spec, changed) {
    this.kind = kind;
    this.descriptions = new Map(descriptions.map((one) => [one.name, one]));
    this.changed = changed;
    this.summary = el("p", { class: "quiet-text" });
    this.place = el("div");
    const name = this.descriptions.has(nameOf(spec)) ? nameOf(spec) : descriptions[0].name;
    this.select = select([...this.descriptions.keys()], name, () => {
      this.#show({});
      changed();
    });
    this.element = el("fieldset", {},
      el("legend", {}, label, help(kind, label)),
      field("name", this.select),
      this.summary,
      this.place,
    );
    this.#show(name === nameOf(spec) ? optionsOf(spec) : {});
  }

  get description() {
    return this.descriptions.get(this.select.value);
  }

  set(spec) {
    this.select.value = nameOf(spec);
    this.#show(optionsOf(spec));
  }

  spec() {
    return specOf(this.select.value, this.form.values());
  }

  // Sets an option that another choice implies, if the plugin has one of this name.
  imply(name, value) {
    const option = this.description.options.properties?.[name];
    const values = this.form.values();
    if (option && (values[name] ?? option.default) !== value) this.#show({ ...values, [name]: value });
  }

  #show(options) {
    const { name, summary } = this.description;
    this.summary.replaceChildren(summary, helpOf(this.kind, name));
    this.form = optionsForm(this.description.options, options, this.changed);
    this.place.replaceChildren(this.form.element);
  }
}

// A list of estimators, each with a box to tick and its options.
export class Estimators {
  constructor(descriptions, fitting, specs, changed) {
    const given = new Map(specs.map((spec) => [nameOf(spec), spec]));
    this.order = specs.map(nameOf);
    this.items = descriptions
      .filter((one) => fitting.includes(one.name))
      .map((one) => {
        const box = el("input", { type: "checkbox", checked: given.has(one.name), id: `use-${one.name}` });
        const form = optionsForm(one.options, optionsOf(given.get(one.name) ?? one.name), changed);
        const options = el("details", { hidden: !box.checked || !Object.keys(one.options.properties ?? {}).length },
          el("summary", {}, `options of ${one.name}`),
          el("p", { class: "quiet-text" }, one.summary, helpOf("estimators", one.name)),
          form.element,
        );
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

  // The ticked estimators, in the order in which they were ticked.
  specs() {
    const ticked = new Map(this.items.filter((one) => one.box.checked).map((one) => [one.name, one]));
    return this.order.filter((name) => ticked.has(name)).map((name) => specOf(name, ticked.get(name).form.values()));
  }

  tick(all) {
    for (const { box } of this.items) if (box.checked !== all) box.click();
  }
}
