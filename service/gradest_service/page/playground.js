// The playground: the output of a neuron, the loss, and where the single draws of each estimator fall.
//
// A cloud is one request for one draw of a batch of equal rows, each of which has its own noise.
import { el, folded, show as number } from "./dom.js";
import { addressOf, saveInAddress } from "./address.js";
import { get, post, trouble } from "./api.js";
import { flatten, nest } from "./arrays.js";
import { Chart, palette, prepare } from "./charts.js";
import { CloudCard } from "./cloud.js";
import { code } from "./code.js";
import { Choice, Estimators, labelOf, nameOf } from "./forms.js";
import { help } from "./guide.js";
import { Numbers, subscript } from "./numbers.js";
import { offer } from "./offer.js";
import { average, histogram, span, summary, ticks } from "./stats.js";

const DEFAULTS = {
  neuron: "bernoulli",
  objective: { name: "quadratic", target: 0.3 },
  a: [0.5, -1],
  seed: 0,
  unit: 0,
  estimators: ["reinforce", "rloo", "disarm", "straight_through"],
};
const PLAIN = ["held_noise", "reinforce"]; // estimators with one evaluation and without a state
const SAMPLES = 4000;
const GRID = 19; // points in each direction of the picture of the loss
const SWEEP = 49; // points of a curve
const EDGE = 6; // curves and pictures go from -6 to 6
const CROSS = "#e45756"; // the colour of the exact gradient
const PATIENCE = 250; // ms after which an unfinished picture is cancelled for the next one

export async function show(root, { state, signal }) {
  const view = await open(root, state, signal, (shown) => saveInAddress("playground", shown));
  root.prepend(offer());
  return { title: "Playground", start: () => view.run() };
}

// Builds the view in `root`; `keep` is called with each state that is shown.
export async function open(root, given, signal, keep) {
  prepare();
  const [neurons, estimators, objectives] = await Promise.all(
    ["v1/neurons", "v1/estimators", "v1/objectives"].map(get),
  );
  const view = new Playground(root, { neurons, estimators, objectives }, { ...DEFAULTS, ...given }, keep);
  signal.addEventListener("abort", () => view.stop());
  return view;
}

class Playground {
  constructor(root, catalog, state, keep) {
    this.catalog = catalog;
    this.keep = keep;
    this.seed = state.seed;
    this.unit = state.unit;
    const changed = () => this.schedule();
    this.neuron = new Choice("Neuron", "neurons", catalog.neurons, state.neuron, () => this.#refit());
    this.objective = new Choice("Objective", "objectives", catalog.objectives, state.objective, changed);
    this.numbers = new Numbers(state.a, this.neuron.description, changed, (at) => (this.unit = at));
    this.objective.imply("event_ndim", this.neuron.description.output_ndim);
    this.chosen = el("div");
    this.#fit(state.estimators);
    this.clouds = el("div", { class: "clouds" });
    this.cards = new Map();
    this.charts = {
      distribution: new Chart("distribution", "The distribution of h"),
      mean: new Chart("mean", "E[h] and P(h > 0) against a"),
      curve: new Chart("curve", "The exact loss against a"),
      surface: new Chart("surface", "The exact loss against two pre-activations"),
    };
    this.note = el("p", { class: "quiet-text" });
    this.facts = el("p", { class: "quiet-text", role: "status" });
    this.more = el("a", {}, "Compare these estimators over many draws");
    this.code = code(() => this.request());
    root.append(
      el("h1", {}, "Playground", help("pictures", "what is drawn")),
      el("div", { class: "bench" },
        el("form", { class: "controls", "aria-label": "What is shown", onsubmit: (event) => event.preventDefault() },
          this.numbers.element,
          el("div", { class: "row" },
            el("button", { type: "button", class: "wide", onclick: () => this.#redraw() }, "Draw new noise"),
            help("noise", "noise and seed"),
          ),
          folded(
            this.neuron.element,
            this.objective.element,
            el("fieldset", {}, el("legend", {}, "Estimators", help("estimators", "estimators")), this.chosen),
          ),
        ),
        (this.pictures = el("div", { class: "pictures", "aria-busy": "true" },
          el("section", { "aria-label": "The neuron and its loss" },
            el("div", { class: "grid" },
              el("figure", {}, this.charts.distribution.host, this.facts),
              el("figure", {}, this.charts.mean.host),
              el("figure", { class: "loss" }, this.charts.curve.host, this.charts.surface.host, this.note),
            ),
          ),
          el("section", { "aria-labelledby": "clouds-title" },
            el("h2", {},
              el("span", { id: "clouds-title" }, "Single draws of the gradient"),
              help("clouds", "single draws"),
            ),
            el("p", { class: "quiet-text" },
              "A dot is a draw; draws at the same place are one larger dot. The red cross is the exact gradient. ",
              "The bars span two standard errors to either side of the mean.",
            ),
            this.clouds,
            el("p", {}, this.more),
          ),
          this.code.element,
        )),
      ),
    );
  }

  #fit(specs) {
    const { estimators, name } = this.neuron.description;
    const fitting = specs.filter((spec) => estimators.includes(nameOf(spec)));
    const some = fitting.length ? fitting : estimators.slice(0, 3);
    this.estimators = new Estimators(this.catalog.estimators, estimators, some, () => this.schedule());
    this.chosen.replaceChildren(this.estimators.element);
    this.chosen.setAttribute("aria-label", `Estimators that fit ${name}`);
  }

  // Puts another state into the controls; `run` shows it.
  set(given) {
    const state = { ...DEFAULTS, ...given };
    this.seed = state.seed;
    this.unit = state.unit;
    this.neuron.set(state.neuron);
    this.objective.set(state.objective);
    this.numbers.set(state.a, this.neuron.description);
    this.objective.imply("event_ndim", this.neuron.description.output_ndim);
    this.#fit(state.estimators);
  }

  #refit() {
    if (!this.numbers.suit(this.neuron.description)) this.unit = 0;
    this.#fit(this.estimators.specs());
    this.schedule();
  }

  #redraw() {
    this.seed += 1;
    this.schedule();
  }

  state() {
    return {
      neuron: this.neuron.spec(),
      objective: this.objective.spec(),
      a: this.numbers.value(),
      seed: this.seed,
      unit: this.unit,
      estimators: this.estimators.specs(),
    };
  }

  // The request for which code is shown: it computes the same clouds and figures.
  request() {
    const { neuron, objective, a, seed, estimators } = this.state();
    return { kind: "clouds", neuron, objective, a, seed, estimators, rows: this.#draws() };
  }

  #draws() {
    return Math.max(50, Math.min(400, Math.floor(4000 / this.numbers.numbers.length)));
  }

  // Draws soon, and one picture at a time: an unfinished one gets some time, then it is cancelled.
  schedule() {
    clearTimeout(this.timer);
    this.objective.imply("event_ndim", this.neuron.description.output_ndim);
    this.pictures.setAttribute("aria-busy", "true");
    this.timer = setTimeout(() => {
      if (this.running && performance.now() - this.began < PATIENCE) this.schedule();
      else this.run();
    }, 12);
  }

  stop() {
    clearTimeout(this.timer);
    this.running?.abort();
  }

  async run() {
    this.running?.abort();
    const running = (this.running = new AbortController());
    this.began = performance.now();
    this.pictures.setAttribute("aria-busy", "true");
    const state = this.state();
    this.unit = state.unit = Math.min(state.unit, this.numbers.numbers.length - 1);
    this.keep(state);
    this.more.href = addressOf("compare", state);
    this.code.update();
    const { signal } = running;
    const parts = [this.#neuron(state, signal), this.#loss(state, signal), this.#gradients(state, signal)];
    const found = await Promise.allSettled(parts);
    if (signal.aborted) return;
    this.running = null;
    trouble(found.find((one) => one.status === "rejected")?.reason ?? null);
    this.pictures.setAttribute("aria-busy", "false");
  }

  // Rows of a in which one or two numbers take other values.
  #rows(changes) {
    const { numbers, shape } = this.numbers;
    return changes.map((change) => nest(numbers.map((one, at) => change[at] ?? one), shape));
  }

  async #neuron({ neuron, seed, unit }, signal) {
    const flat = [...this.numbers.numbers];
    const sweep = ticks(SWEEP, -EDGE, EDGE);
    const samples = Math.min(SAMPLES, Math.floor(60000 / flat.length));
    const [sampled, exact] = await Promise.all([
      post("v1/sample", { neuron, a: this.numbers.value(), samples, seed }, signal),
      post("v1/mean", { neuron, a: this.#rows([{}, ...sweep.map((at) => ({ [unit]: at }))]) }, signal),
    ]);
    const draws = sampled.h.map(flatten);
    const [means, ...swept] = exact.mean.map(flatten);
    const [chances, ...sweptChances] = exact.active_probability.map(flatten);
    const output = this.numbers.outputOf(unit, means.length);
    const column = (at) => draws.map((draw) => draw[this.numbers.outputOf(at, means.length)]);
    const shown = this.numbers.dims === 1 ? flat.map((_, at) => at) : [unit];
    const mean = average(column(unit));
    const active = average(column(unit).map((one) => Number(one > 0)));
    this.facts.textContent =
      `${this.#name(unit)} = ${number(flat[unit])}: E[h] = ${number(means[output], 4)}, sampled ${number(mean, 4)}; ` +
      `P(h > 0) = ${number(chances[output], 4)}, sampled ${number(active, 4)}.`;
    this.charts.distribution.describe(`The distribution of h. ${this.facts.textContent}`);
    this.charts.mean.describe(`E[h] and P(h > 0) as ${this.#name(unit)} goes from -6 to 6. ${this.facts.textContent}`);
    const names = ["E[h]", "P(h > 0)"];
    await Promise.all([
      this.charts.distribution.draw({
        rows: histogram(column(unit)),
        means: [
          { of: "E[h], exact", mean: means[output] },
          { of: "sampled mean", mean },
        ],
      }),
      this.charts.mean.draw({
        curve: sweep.flatMap((a, at) => [
          { a, of: names[0], value: swept[at][output] },
          { a, of: names[1], value: sweptChances[at][output] },
        ]),
        sampled: shown.flatMap((at) => [
          { a: flat[at], unit: at + 1, of: names[0], value: average(column(at)) },
          { a: flat[at], unit: at + 1, of: names[1], value: average(column(at).map((one) => Number(one > 0))) },
        ]),
      }),
    ]);
  }

  #name(at) {
    return this.numbers.dims === 1 ? `a${subscript(at + 1)}` : this.numbers.nameOf(at);
  }

  // The estimator that is asked for the exact values, which come with any estimate: a plain one, or else the cheapest
  // of those with the most frequent target.
  #cheapest(neuron) {
    const fitting = this.catalog.estimators.filter((one) => one.neurons.includes(neuron));
    const plain = PLAIN.find((name) => fitting.some((one) => one.name === name));
    if (plain) return plain;
    const targets = fitting.map((one) => one.target);
    const times = (target) => targets.filter((one) => one === target).length;
    const usual = targets.sort((one, two) => times(two) - times(one))[0];
    const cost = (one) => (one.evaluations[neuron]["8"] ?? 1e9) + (one.needs.includes("grad") ? 0 : 0.5);
    return fitting.filter((one) => one.target === usual).sort((one, two) => cost(one) - cost(two))[0]?.name;
  }

  async #loss({ neuron, objective, seed, unit }, signal) {
    const estimator = this.#cheapest(nameOf(neuron));
    const flat = this.numbers.numbers;
    const next = (unit + 1) % flat.length;
    const alone = flat.length === 1;
    const across = alone ? ticks(2 * SWEEP, -EDGE, EDGE) : ticks(GRID, -EDGE, EDGE);
    const places = alone ? across.map((x) => [x]) : across.flatMap((x) => across.map((y) => [x, y]));
    const a = this.#rows([{}, ...places.map(([x, y]) => (alone ? { [unit]: x } : { [unit]: x, [next]: y }))]);
    const { exact } = await post("v1/estimate", { neuron, objective, estimator, a, draws: 1, seed }, signal);
    const [known, other] = alone ? [this.charts.curve, this.charts.surface] : [this.charts.surface, this.charts.curve];
    known.host.hidden = !exact;
    other.host.hidden = true;
    if (!exact) {
      this.note.textContent = "The exact loss cannot be computed here.";
      return;
    }
    const [loss, ...losses] = exact.loss;
    const gradient = flatten(exact.gradient[0]);
    const shown = gradient.slice(0, 8).map((one) => number(one));
    const listed = [...shown, ...(gradient.length > 8 ? ["…"] : [])].join(", ");
    this.note.textContent = `E[L] = ${number(loss, 4)}; exact gradient (${listed}).`;
    known.describe(`The exact loss around a. ${this.note.textContent}`);
    const x = flat[unit];
    if (alone) {
      const reach = 1.5;
      await known.draw({
        rows: losses.map((one, at) => ({ x: places[at][0], loss: one })),
        gradient: [{ x: x - reach, y: loss - reach * gradient[0], x2: x + reach, y2: loss + reach * gradient[0] }],
        here: [{ x, y: loss }],
      });
      return;
    }
    const y = flat[next];
    const half = (1.03 * EDGE) / (GRID - 1); // the fields overlap a little, so that there are no seams
    const size = Math.hypot(gradient[unit], gradient[next]) || 1;
    const reach = 2.2;
    await known.draw({
      rows: losses.map((one, at) => ({
        x: places[at][0] - half,
        x2: places[at][0] + half,
        y: places[at][1] - half,
        y2: places[at][1] + half,
        loss: one,
      })),
      gradient: [{ x, y, x2: x + (reach * gradient[unit]) / size, y2: y + (reach * gradient[next]) / size }],
      here: [{ x, y }],
    });
  }

  async #gradients({ neuron, objective, seed, unit, estimators }, signal) {
    const rows = this.#draws();
    const a = Array(rows).fill(this.numbers.value());
    const clouds = estimators.map((estimator) => ({ label: labelOf(estimator), pending: true }));
    const draw = () => signal.aborted || this.#draw(clouds, unit);
    // clouds are drawn together if all arrive soon; one that warms up its state delays the others no longer than this
    let late = false;
    const timer = setTimeout(() => ((late = true), draw()), PATIENCE / 2);
    await Promise.all(
      estimators.map(async (estimator, at) => {
        const { label } = clouds[at];
        try {
          const answer = await post("v1/estimate", { neuron, objective, estimator, a, draws: 1, seed }, signal);
          clouds[at] = { label, ...summary(answer) };
        } catch (fault) {
          clouds[at] = { label, fault };
        }
        if (late) await draw();
      }),
    );
    clearTimeout(timer);
    if (signal.aborted) return;
    if (!late) await draw();
    if (clouds.length && clouds.every((one) => one.fault)) throw clouds[0].fault;
  }

  // Draws the clouds on the same axes; pending ones stay as they are, and look faint.
  async #draw(clouds, unit) {
    const next = (unit + 1) % this.numbers.numbers.length;
    const alone = next === unit;
    const good = clouds.filter((one) => one.draws);
    const along = (at) =>
      span(good.flatMap((one) => [...one.draws.map((draw) => draw[at]), one.exact?.[at] ?? one.mean[at]]));
    const wide = along(unit);
    const tall = alone ? [-1.6, 1.6] : along(next);
    const names = new Set(clouds.map((one) => one.label));
    for (const [label, card] of this.cards) if (!names.has(label)) (card.element.remove(), this.cards.delete(label));
    const shades = (await palette()).filter((shade) => shade !== CROSS);
    const axes = { unit, next, alone, wide, tall, across: this.#name(unit), up: this.#name(next) };
    await Promise.all(
      clouds.map((cloud, at) => this.#card(cloud, at).draw(cloud, { ...axes, shade: shades[at % shades.length] })),
    );
  }

  #card({ label }, at) {
    if (!this.cards.has(label)) this.cards.set(label, new CloudCard(label));
    const card = this.cards.get(label);
    const there = this.clouds.children[at] ?? null;
    if (there !== card.element) this.clouds.insertBefore(card.element, there);
    return card;
  }
}
