// Estimators side by side: a comparison with live progress, its table and its charts.
import { el, field, folded, save, select, show as number } from "./dom.js";
import { events, get, post, trouble } from "./api.js";
import { keep } from "./app.js";
import { Chart, prepare } from "./charts.js";
import { Choice, Estimators, Numbers, flatten, labelOf, nameOf, nest } from "./forms.js";
import { code } from "./code.js";

const USUAL = { neuron: "bernoulli", objective: { name: "quadratic", target: 0.3 }, a: [0.5, -1, 2], draws: 1000, seed: 0, unit: 0, sort: ["variance", 1], estimators: ["reinforce", "rloo", "disarm", "rebar", "straight_through", "reinmax"] };
const COLUMNS = [
  ["estimator", "estimator"],
  ["claim", "claimed bias"],
  ["evaluations", "K"],
  ["bias", "bias"],
  ["bias_in_se", "bias/SE"],
  ["variance", "variance"],
  ["snr", "SNR"],
  ["cosine", "cosine"],
  ["efficiency", "efficiency"],
  ["seconds", "seconds"],
];
const SWEEP = 17;
const EDGE = 6;
const SWEEP_DRAWS = 400;

export async function show(root, { state: given, signal }) {
  prepare();
  const [neurons, estimators, objectives] = await Promise.all(["v1/neurons", "v1/estimators", "v1/objectives"].map(get));
  const view = new Compare(root, { neurons, estimators, objectives }, { ...USUAL, ...given });
  signal.addEventListener("abort", () => view.stop());
  return { title: "Compare", start: () => given.ran && view.run() };
}

class Compare {
  constructor(root, catalog, state) {
    this.catalog = catalog;
    this.sort = state.sort;
    this.unit = state.unit;
    this.ran = false;
    const changed = () => this.#changed();
    this.neuron = new Choice("Neuron", catalog.neurons, state.neuron, () => this.#refit());
    this.objective = new Choice("Objective", catalog.objectives, state.objective, changed);
    this.numbers = new Numbers(state.a, this.neuron.description.event_ndim, changed);
    this.objective.imply("event_ndim", this.numbers.dims);
    this.draws = el("input", { type: "number", min: 1, step: 1, value: state.draws, oninput: changed });
    this.seed = el("input", { type: "number", min: 0, step: 1, value: state.seed, oninput: changed });
    this.chosen = el("div");
    this.#fit(state.estimators);
    this.start = el("button", { class: "primary" }, "Compare");
    this.halt = el("button", { type: "button", disabled: true, onclick: () => this.stop() }, "Stop");
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress of the comparison", hidden: true });
    this.said = el("p", { role: "status", class: "quiet-text" }, "Nothing is computed yet.");
    this.table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Results", hidden: true });
    this.charts = {
      bias: new Chart("bias", "Bias against variance"),
      error: new Chart("error", "Error against evaluations"),
      variance: new Chart("variance", "Variance against p"),
    };
    this.figures = el("div", { class: "grid wide", hidden: true }, Object.entries(this.charts).map(([name, chart]) =>
      el("figure", {}, chart.host, el("button", { type: "button", class: "quiet", onclick: async () => save(`gradest-${name}.png`, await chart.png()) }, `${name}: save as PNG`)),
    ));
    this.units = el("div");
    this.charts.variance.host.after(this.units);
    this.copied = el("span", { role: "status" });
    this.downloads = el("div", { class: "row", hidden: true },
      el("button", { type: "button", onclick: () => this.#saveJson() }, "JSON"),
      el("button", { type: "button", onclick: () => this.#saveCsv() }, "CSV"),
      el("button", { type: "button", onclick: () => this.#copyLink() }, "Copy the link"),
      this.copied,
    );
    this.code = code(() => this.request());
    root.append(
      el("h1", {}, "Compare"),
      el("div", { class: "bench" },
        el("form", { class: "controls", "aria-label": "What is compared", onsubmit: (event) => (event.preventDefault(), this.run()) },
          el("div", { class: "row" }, this.start, this.halt),
          this.numbers.element,
          el("fieldset", {}, el("legend", {}, "How much"), el("div", { class: "row" }, field("draws of each", this.draws), field("seed", this.seed))),
          folded(this.neuron.element, this.objective.element, el("fieldset", {}, el("legend", {}, "Estimators"),
            el("div", { class: "row" },
              el("button", { type: "button", class: "quiet", onclick: () => this.estimators.tick(true) }, "all"),
              el("button", { type: "button", class: "quiet", onclick: () => this.estimators.tick(false) }, "none")),
            this.chosen)),
        ),
        this.pictures = el("div", { class: "pictures" }, this.bar, this.said, this.downloads, this.table, this.figures, this.code.element),
      ),
    );
    this.code.update();
  }

  #fit(specs) {
    const { estimators } = this.neuron.description;
    const fitting = specs.filter((spec) => estimators.includes(nameOf(spec)));
    this.estimators = new Estimators(this.catalog.estimators, estimators, fitting.length ? fitting : estimators.slice(0, 4), () => this.#changed());
    this.chosen.replaceChildren(this.estimators.element);
  }

  #refit() {
    const dims = this.neuron.description.event_ndim;
    if (dims !== this.numbers.dims) {
      this.numbers.set([], dims);
    }
    this.#fit(this.estimators.specs());
    this.#changed();
  }

  // What is on screen no longer answers what is asked.
  #changed() {
    this.ran = false;
    this.objective.imply("event_ndim", this.numbers.dims);
    this.#remember();
  }

  #remember() {
    keep("compare", { ...this.fields(), unit: this.unit, sort: this.sort, ran: this.ran || undefined });
    this.code.update();
  }

  fields() {
    return {
      neuron: this.neuron.spec(),
      objective: this.objective.spec(),
      a: this.numbers.value(),
      estimators: this.estimators.specs(),
      draws: Number(this.draws.value),
      seed: Number(this.seed.value),
    };
  }

  request() {
    return { kind: "compare", ...this.fields() };
  }

  stop() {
    this.running?.abort();
  }

  run() {
    return this.#work(async (fields, signal) => {
      if (!fields.estimators.length) {
        this.said.textContent = "Choose an estimator.";
        return;
      }
      this.bar.hidden = false;
      this.bar.value = 0;
      const done = new Map();
      this.said.textContent = "Comparing…";
      for await (const { event, data } of events("v1/compare", fields, signal)) {
        if (event === "progress") this.#progress(done, data, fields.estimators.length);
        else if (event === "error") throw Object.assign(new Error(data.detail), { problem: data });
        else this.answer = data;
      }
      this.unit = Math.min(this.unit, this.numbers.numbers.length - 1);
      this.ran = true;
      this.#remember();
      await this.#draw();
      await this.#sweep(fields, signal);
    });
  }

  // Does what is asked for, in place of what was under way; `task` takes the fields and a signal that stops it.
  async #work(task) {
    this.stop();
    const running = (this.running = new AbortController());
    trouble(null);
    this.halt.disabled = false;
    this.pictures.setAttribute("aria-busy", "true");
    try {
      await task(this.fields(), running.signal);
    } catch (error) {
      if (this.running === running) this.said.textContent = error.name === "AbortError" ? "Stopped." : "It did not come to its end.";
      trouble(error);
    } finally {
      if (this.running === running) {
        this.halt.disabled = true;
        this.pictures.setAttribute("aria-busy", "false");
        this.bar.hidden = true;
      }
    }
  }

  #progress(done, { estimator, done: so, draws }, count) {
    done.set(estimator, so / draws);
    const shares = [...done].filter(([name]) => name !== "exact").map(([, share]) => share);
    this.bar.value = shares.reduce((sum, share) => sum + share, 0) / count;
    this.said.textContent = `${estimator === "exact" ? "exact gradient" : estimator}: ${so} of ${draws}`;
  }

  async #draw() {
    const { rows } = this.answer;
    this.table.hidden = this.figures.hidden = this.downloads.hidden = false;
    this.#tabulate();
    const names = this.#names();
    this.units.replaceChildren(field("p changes with", select(names, names[this.unit], (name) => this.#choose(names.indexOf(name)))));
    const best = [...rows].sort((one, two) => Number(one.variance) - Number(two.variance))[0];
    this.charts.bias.describe(`Bias against variance of ${rows.length} estimators; ${best.estimator} has the least variance. The table has the numbers.`);
    this.charts.error.describe("Relative error against evaluations of the loss. The table has the numbers.");
    await Promise.all([this.charts.bias.draw({ rows }), this.charts.error.draw({ rows })]);
  }

  #tabulate() {
    const [column, direction] = this.sort;
    const key = (row) => (["estimator", "claim"].includes(column) ? row[column] : Number(row[column] ?? NaN));
    const rows = [...this.answer.rows].sort((one, two) => {
      const [x, y] = [key(one), key(two)];
      if (typeof x === "string") return direction * x.localeCompare(y);
      return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : direction * (x - y || 0);
    });
    const by = (name) => {
      this.sort = [name, name === column ? -direction : 1];
      this.#tabulate();
      this.#remember();
      this.table.querySelector(`[data-column=${name}]`).focus();
    };
    const head = COLUMNS.map(([name, title]) =>
      el("th", { scope: "col", class: ["estimator", "claim"].includes(name) ? false : "number", "aria-sort": name === column ? (direction > 0 ? "ascending" : "descending") : false },
        el("button", { type: "button", "data-column": name, onclick: () => by(name) }, title, el("span", { "aria-hidden": "true" }, name === column ? (direction > 0 ? " ↑" : " ↓") : ""))),
    );
    const body = rows.map((row) =>
      el("tr", {}, COLUMNS.map(([name]) =>
        name === "estimator" ? el("th", { scope: "row" }, row[name]) : el("td", { class: name === "claim" ? "" : "number" }, name === "claim" ? row[name] : number(row[name])))),
    );
    this.table.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
  }

  #names() {
    return this.numbers.numbers.map((_, at) => this.numbers.nameOf(at));
  }

  #choose(unit) {
    this.unit = unit;
    this.#remember();
    if (this.ran) this.#work((fields, signal) => this.#sweep(fields, signal));
  }

  // The variance of each estimator as one number of a goes from -6 to 6.
  async #sweep({ neuron, objective, a, estimators, draws, seed }, signal) {
    const flat = flatten(a);
    const unit = this.unit;
    const said = `${this.answer.neuron}, ${this.answer.draws} draws of each, seed ${this.answer.seed}`;
    this.said.textContent = `${said}. The sweep over p is on its way…`;
    const places = Array.from({ length: SWEEP }, (_, at) => -EDGE + (2 * EDGE * at) / (SWEEP - 1));
    const rows = places.map((x) => nest(flat.map((one, at) => (at === unit ? x : one)), this.numbers.shape));
    const { active_probability: chances } = await post("v1/mean", { neuron, a: rows }, signal);
    const found = [];
    for (const estimator of estimators) {
      const answer = await post("v1/estimate", { neuron, objective, estimator, a: rows, draws: Math.min(draws, SWEEP_DRAWS), seed }, signal);
      answer.variance.forEach((variance, at) => {
        const numbers = flatten(variance).map(Number);
        const mean = numbers.reduce((sum, one) => sum + one, 0) / numbers.length;
        found.push({ estimator: labelOf(estimator), p: flatten(chances[at])[unit], cost: mean * answer.evaluations });
      });
      await this.charts.variance.draw({ rows: found });
    }
    this.charts.variance.describe(`Variance times evaluations of ${estimators.length} estimators as P(h > 0) changes with ${this.#names()[unit]}.`);
    this.said.textContent = `${said}${this.answer.exact ? "" : "; the exact gradient is out of reach"}.`;
  }

  #saveJson() {
    save("gradest-compare.json", new Blob([JSON.stringify({ request: this.fields(), result: this.answer }, null, 2)], { type: "application/json" }));
  }

  #saveCsv() {
    const cell = (value) => (/[",\n]/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
    const lines = [COLUMNS.map(([name]) => name), ...this.answer.rows.map((row) => COLUMNS.map(([name]) => cell(row[name])))];
    save("gradest-compare.csv", new Blob([lines.map((line) => line.join(",")).join("\r\n") + "\r\n"], { type: "text/csv" }));
  }

  async #copyLink() {
    await navigator.clipboard.writeText(location.href);
    this.copied.textContent = "copied";
  }
}
