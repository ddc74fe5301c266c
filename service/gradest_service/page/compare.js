// Compares estimators: shows the progress, then a table and charts.
import { el, field, folded, save, select } from "./dom.js";
import { saveInAddress } from "./address.js";
import { events, get, post, trouble } from "./api.js";
import { flatten, nest } from "./arrays.js";
import { Chart, prepare } from "./charts.js";
import { code } from "./code.js";
import { Choice, Estimators, labelOf, nameOf } from "./forms.js";
import { help } from "./guide.js";
import { Numbers } from "./numbers.js";
import { COLUMNS, ResultTable, WORDS, toCsv } from "./results.js";
import { average, ticks } from "./stats.js";

const DEFAULTS = {
  neuron: "bernoulli",
  objective: { name: "quadratic", target: 0.3 },
  a: [0.5, -1, 2],
  draws: 1000,
  seed: 0,
  unit: 0,
  sort: ["variance", 1],
  estimators: ["reinforce", "rloo", "disarm", "rebar", "straight_through", "reinmax"],
};
const SWEEP = 17; // points of a curve
const SWEEP_DRAWS = 400; // at most, for each of them
const EDGE = 6; // curves go from -6 to 6

export async function show(root, { state, signal }) {
  const view = await open(root, state, signal, (shown) => saveInAddress("compare", shown));
  return { title: "Compare", start: () => state.ran && view.run() };
}

// Builds the view in `root`; `keep` is called with each state that is shown.
export async function open(root, given, signal, keep) {
  prepare();
  const [neurons, estimators, objectives] = await Promise.all(
    ["v1/neurons", "v1/estimators", "v1/objectives"].map(get),
  );
  const view = new Compare(root, { neurons, estimators, objectives }, { ...DEFAULTS, ...given }, keep);
  signal.addEventListener("abort", () => view.stop());
  return view;
}

class Compare {
  constructor(root, catalog, state, keep) {
    this.catalog = catalog;
    this.keep = keep;
    this.unit = state.unit;
    this.ran = false;
    const changed = () => this.#changed();
    this.neuron = new Choice("Neuron", "neurons", catalog.neurons, state.neuron, () => this.#refit());
    this.objective = new Choice("Objective", "objectives", catalog.objectives, state.objective, changed);
    this.numbers = new Numbers(state.a, this.neuron.description, changed);
    this.objective.imply("event_ndim", this.neuron.description.output_ndim);
    this.draws = el("input", { type: "number", min: 1, step: 1, value: state.draws, oninput: changed });
    this.seed = el("input", { type: "number", min: 0, step: 1, value: state.seed, oninput: changed });
    this.chosen = el("div");
    this.#fit(state.estimators);
    this.start = el("button", { class: "primary" }, "Compare");
    this.halt = el("button", { type: "button", disabled: true, onclick: () => this.stop() }, "Stop");
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress of the comparison", hidden: true });
    this.said = el("p", { role: "status", class: "quiet-text" }, "Nothing has been computed yet.");
    this.table = new ResultTable(COLUMNS, WORDS, state.sort, () => this.#remember());
    this.charts = {
      bias: new Chart("bias", "Bias against variance"),
      error: new Chart("error", "Error against evaluations"),
      variance: new Chart("variance", "Variance against p"),
    };
    this.figures = el("div", { class: "grid wide", hidden: true },
      Object.entries(this.charts).map(([name, chart]) => {
        const savePng = async () => save(`gradest-${name}.png`, await chart.png());
        const button = el("button", { type: "button", class: "quiet", onclick: savePng }, `${name}: save as PNG`);
        return el("figure", {}, chart.host, button);
      }),
    );
    this.units = el("div", { class: "row" });
    this.charts.variance.host.after(this.units);
    this.copied = el("span", { role: "status" });
    this.downloads = el("div", { class: "row", hidden: true },
      el("button", { type: "button", onclick: () => this.#saveJson() }, "JSON"),
      el("button", { type: "button", onclick: () => this.#saveCsv() }, "CSV"),
      el("button", { type: "button", onclick: () => this.#copyLink() }, "Copy the link"),
      help("code", "code and files"),
      this.copied,
    );
    this.code = code(() => this.request());
    const onsubmit = (event) => (event.preventDefault(), this.run());
    root.append(
      el("h1", {}, "Compare", help("results", "the table")),
      el("div", { class: "bench" },
        el("form", { class: "controls", "aria-label": "What is compared", onsubmit },
          el("div", { class: "row" }, this.start, this.halt),
          this.numbers.element,
          el("fieldset", { class: "draws" },
            el("legend", {}, "Draws", help("draws", "draws and seed")),
            el("div", { class: "row" }, field("draws of each estimator", this.draws), field("seed", this.seed)),
          ),
          folded(
            this.neuron.element,
            this.objective.element,
            el("fieldset", {},
              el("legend", {}, "Estimators", help("estimators", "estimators")),
              el("div", { class: "row" },
                el("button", { type: "button", class: "quiet", onclick: () => this.estimators.tick(true) }, "all"),
                el("button", { type: "button", class: "quiet", onclick: () => this.estimators.tick(false) }, "none"),
              ),
              this.chosen,
            ),
          ),
        ),
        (this.pictures = el("div", { class: "pictures" },
          this.bar,
          this.said,
          this.downloads,
          this.table.element,
          this.figures,
          this.code.element,
        )),
      ),
    );
    this.code.update();
  }

  #fit(specs) {
    const { estimators } = this.neuron.description;
    const fitting = specs.filter((spec) => estimators.includes(nameOf(spec)));
    const some = fitting.length ? fitting : estimators.slice(0, 4);
    this.estimators = new Estimators(this.catalog.estimators, estimators, some, () => this.#changed());
    this.chosen.replaceChildren(this.estimators.element);
  }

  #refit() {
    this.numbers.suit(this.neuron.description);
    this.#fit(this.estimators.specs());
    this.#changed();
  }

  // Notes that the results on screen are no longer those of the form.
  #changed() {
    this.ran = false;
    this.objective.imply("event_ndim", this.neuron.description.output_ndim);
    this.#remember();
  }

  #remember() {
    this.keep(this.state());
    this.code.update();
  }

  state() {
    const { unit, table, ran } = this;
    return { ...this.fields(), unit, sort: table.sort, ran: ran || undefined };
  }

  // Puts another state into the controls; `run` shows it.
  set(given) {
    const state = { ...DEFAULTS, ...given };
    this.unit = state.unit;
    this.neuron.set(state.neuron);
    this.objective.set(state.objective);
    this.numbers.set(state.a, this.neuron.description);
    this.objective.imply("event_ndim", this.neuron.description.output_ndim);
    this.draws.value = state.draws;
    this.seed.value = state.seed;
    this.table.sort = state.sort;
    this.#fit(state.estimators);
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
      const shares = new Map(); // of its draws that each estimator has made
      this.said.textContent = "Comparing…";
      for await (const { event, data } of events("v1/compare", fields, signal)) {
        if (event === "progress") this.#progress(shares, data, fields.estimators.length);
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

  // Runs a task instead of the one that is running; `task` takes the fields and a signal that stops it.
  async #work(task) {
    this.stop();
    const running = (this.running = new AbortController());
    trouble(null);
    this.halt.disabled = false;
    this.pictures.setAttribute("aria-busy", "true");
    try {
      await task(this.fields(), running.signal);
    } catch (error) {
      const outcome = error.name === "AbortError" ? "Stopped." : "The computation failed.";
      if (this.running === running) this.said.textContent = outcome;
      trouble(error);
    } finally {
      if (this.running === running) {
        this.halt.disabled = true;
        this.pictures.setAttribute("aria-busy", "false");
        this.bar.hidden = true;
      }
    }
  }

  #progress(shares, { estimator, done, draws }, count) {
    if (estimator !== "exact") shares.set(estimator, done / draws);
    this.bar.value = [...shares.values()].reduce((sum, share) => sum + share, 0) / count;
    this.said.textContent = `${estimator === "exact" ? "exact gradient" : estimator}: ${done} of ${draws}`;
  }

  async #draw() {
    const { rows } = this.answer;
    this.figures.hidden = this.downloads.hidden = false;
    this.table.show(rows);
    const names = this.#names();
    const units = select(names, names[this.unit], (name) => this.#choose(names.indexOf(name)));
    this.units.replaceChildren(field("p changes with", units), help("charts", "the charts"));
    const best = [...rows].sort((one, two) => Number(one.variance) - Number(two.variance))[0];
    const least = best ? `; ${best.estimator} has the least variance` : "";
    this.charts.bias.describe(
      `Bias against variance of ${rows.length} estimators${least}. The table has the numbers.`,
    );
    this.charts.error.describe("Relative error against evaluations of the loss. The table has the numbers.");
    await Promise.all([this.charts.bias.draw({ rows }), this.charts.error.draw({ rows })]);
  }

  #names() {
    return this.numbers.numbers.map((_, at) => this.numbers.nameOf(at));
  }

  #choose(unit) {
    this.unit = unit;
    this.#remember();
    if (this.ran) this.#work((fields, signal) => this.#sweep(fields, signal));
  }

  // Draws the variance of each estimator while one number of a goes from -6 to 6.
  async #sweep({ neuron, objective, a, estimators, draws, seed }, signal) {
    const flat = flatten(a);
    const unit = this.unit;
    const left = this.answer.skipped.map(({ estimator, reasons }) => `; without ${estimator}: ${reasons.join("; ")}`);
    const without = new Set(this.answer.skipped.map(({ estimator }) => estimator));
    const said =
      `${this.answer.neuron}, ${this.answer.draws} draws of each estimator, seed ${this.answer.seed}` + left.join("");
    this.said.textContent = `${said}. The chart over p is being computed…`;
    const moved = (x) => flat.map((one, at) => (at === unit ? x : one));
    const rows = ticks(SWEEP, -EDGE, EDGE).map((x) => nest(moved(x), this.numbers.shape));
    const { active_probability: chances } = await post("v1/mean", { neuron, a: rows }, signal);
    const found = [];
    for (const estimator of estimators.filter((spec) => !without.has(labelOf(spec)))) {
      const body = { neuron, objective, estimator, a: rows, draws: Math.min(draws, SWEEP_DRAWS), seed };
      const answer = await post("v1/estimate", body, signal);
      answer.variance.forEach((variance, at) => {
        const mean = average(flatten(variance).map(Number));
        found.push({ estimator: labelOf(estimator), p: flatten(chances[at])[unit], cost: mean * answer.evaluations });
      });
      await this.charts.variance.draw({ rows: found });
    }
    this.charts.variance.describe(
      `Variance times evaluations of ${estimators.length} estimators as P(h > 0) changes with ${this.#names()[unit]}.`,
    );
    this.said.textContent = `${said}${this.answer.exact ? "" : "; the exact gradient cannot be computed"}.`;
  }

  #saveJson() {
    const text = JSON.stringify({ request: this.fields(), result: this.answer }, null, 2);
    save("gradest-compare.json", new Blob([text], { type: "application/json" }));
  }

  #saveCsv() {
    save("gradest-compare.csv", new Blob([toCsv(this.answer.rows)], { type: "text/csv" }));
  }

  async #copyLink() {
    await navigator.clipboard.writeText(location.href);
    this.copied.textContent = "copied";
  }
}
