// Draws charts on canvas from the vega-lite definitions in gradest/charts, without evaluating any code.
import { el } from "./dom.js";
import { base } from "./api.js";

let library = null;
const definitions = new Map();
const shown = new Set();

function script(name) {
  return new Promise((resolve, reject) => {
    const made = el("script", { src: `${base}page/vendor/${name}` });
    made.onload = resolve;
    made.onerror = () => reject(new Error("The library for charts did not load."));
    document.head.append(made);
  });
}

async function load() {
  await script("vega.min.js");
  const [, { expressionInterpreter }] = await Promise.all([
    script("vega-lite.min.js"),
    import("./vendor/vega-interpreter.js"),
  ]);
  return { vega: globalThis.vega, vegaLite: globalThis.vegaLite, expressionInterpreter };
}

function definition(name) {
  if (!definitions.has(name))
    definitions.set(
      name,
      fetch(`${base}page/charts/${name}.json`).then((found) => found.json()),
    );
  return definitions.get(name);
}

export const prepare = () => (library ||= load());
export const palette = async () => (await definition("config")).range.category;

// Widths in pixels.
const LETTER = 7; // about one letter of a label in a legend
const SYMBOL = 36; // a legend's symbol and its margins
const AXIS = 60; // the space to the left of a legend

function themed(config, width) {
  const style = getComputedStyle(document.body);
  return {
    ...config,
    font: style.fontFamily,
    background: style.backgroundColor,
    axis: {
      ...config.axis,
      gridColor: style.color,
      domainColor: style.color,
      tickColor: style.color,
      labelColor: style.color,
      titleColor: style.color,
    },
    legend: {
      ...config.legend,
      labelColor: style.color,
      titleColor: style.color,
      symbolBaseFillColor: style.color,
      symbolBaseStrokeColor: style.color,
      orient: "bottom",
      columns: { expr: "columns" },
      labelLimit: width - AXIS - SYMBOL,
      layout: { bottom: { anchor: "start", direction: "vertical" } },
    },
    title: { ...config.title, color: style.color },
    line: { color: style.color },
  };
}

// One chart, in an element of its own; `name` is that of its definition, and `text` says in words what it shows.
export class Chart {
  constructor(name, text) {
    this.name = name;
    this.host = el("div", { class: "chart", role: "img", "aria-label": text });
    this.rows = {};
    this.signals = {};
  }

  describe(text) {
    this.host.setAttribute("aria-label", text);
  }

  // Draws new rows, by the names that the definition gives them, with new values of its parameters.
  async draw(rows, signals = {}) {
    this.rows = rows;
    this.signals = signals;
    this.view ||= this.#make();
    const view = await this.view;
    for (const [name, values] of Object.entries(this.rows)) view.data(name, values);
    for (const [name, value] of Object.entries({ ...this.signals, columns: this.#columns() })) view.signal(name, value);
    await view.runAsync();
  }

  // How many columns there is room for in a legend of estimators, which is below the chart.
  #columns() {
    const letters = Math.max(
      ...Object.values(this.rows)
        .flat()
        .map((row) => row.estimator?.length ?? 0),
      1,
    );
    return Math.max(1, Math.floor((this.host.clientWidth - AXIS) / (letters * LETTER + SYMBOL)));
  }

  async #make() {
    const [{ vega, vegaLite, expressionInterpreter }, found, config] = await Promise.all([
      prepare(),
      definition(this.name),
      definition("config"),
    ]);
    const params = [...(found.params ?? []), { name: "columns", value: 1 }];
    const whole = {
      ...structuredClone(found),
      params,
      width: "container",
      autosize: { type: "fit-x", contains: "padding", resize: true },
    };
    const compiled = vegaLite.compile(whole, { config: themed(config, this.host.clientWidth) }).spec;
    const view = new vega.View(vega.parse(compiled, null, { ast: true }), {
      expr: expressionInterpreter,
      renderer: "canvas",
      container: this.host,
      hover: true,
      logLevel: vega.Error,
    });
    shown.add(this);
    return view;
  }

  async redraw() {
    if (!this.host.isConnected) {
      shown.delete(this);
      return;
    }
    (await this.view).finalize();
    this.host.replaceChildren();
    this.view = this.#make();
    await this.draw(this.rows, this.signals);
  }

  async png() {
    const canvas = await (await this.view).toCanvas(2);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

// Draws all charts again, after a change of theme.
export const redrawAll = () => shown.forEach((chart) => chart.redraw());
