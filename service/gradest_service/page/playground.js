// The playground: what a neuron gives, what the loss is, and where each estimator's single draws fall.
//
// A cloud is one request: a batch of equal rows, each with noise of its own, and one draw.
import { el, folded, show as number } from "./dom.js";
import { get, post, trouble } from "./api.js";
import { keep } from "./app.js";
import { Chart, palette, prepare } from "./charts.js";
import { Choice, Estimators, Numbers, flatten, labelOf, nameOf, nest, subscript } from "./forms.js";
import { code } from "./code.js";

const USUAL = { neuron: "bernoulli", objective: { name: "quadratic", target: 0.3 }, a: [0.5, -1], seed: 0, unit: 0, estimators: ["reinforce", "rloo", "disarm", "straight_through"] };
const PLAIN = ["held_noise", "reinforce"];
const SAMPLES = 4000;
const GRID = 19;
const SWEEP = 49;
const EDGE = 6;
const CROSS = "#e45756"; // what the exact gradient is drawn in
const PATIENCE = 250; // ms after which a picture that is still on its way gives way to the next one

export async function show(root, { state: given, signal }) {
  prepare();
  const [neurons, estimators, objectives] = await Promise.all(["v1/neurons", "v1/estimators", "v1/objectives"].map(get));
  const state = { ...USUAL, ...given };
  const view = new Playground(root, { neurons, estimators, objectives }, state);
  signal.addEventListener("abort", () => view.stop());
  return { title: "Playground", start: () => view.run() };
}

class Playground {
  constructor(root, catalog, state) {
    this.catalog = catalog;
    this.seed = state.seed;
    this.unit = state.unit;
    const changed = () => this.schedule();
    this.neuron = new Choice("Neuron", catalog.neurons, state.neuron, () => this.#refit());
    this.objective = new Choice("Objective", catalog.objectives, state.objective, changed);
    this.numbers = new Numbers(state.a, this.neuron.description.event_ndim, changed, (at) => (this.unit = at));
    this.objective.imply("event_ndim", this.numbers.dims);
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
    this.more = el("a", {}, "Compare these by many draws");
    this.code = code(() => this.request());
    root.append(
      el("h1", {}, "Playground"),
      el("div", { class: "bench" },
        el("form", { class: "controls", "aria-label": "What is shown", onsubmit: (event) => event.preventDefault() },
          this.numbers.element,
          el("button", { type: "button", onclick: () => this.#redraw() }, "Other noise"),
          folded(this.neuron.element, this.objective.element, el("fieldset", {}, el("legend", {}, "Estimators"), this.chosen)),
        ),
        this.pictures = el("div", { class: "pictures", "aria-busy": "true" },
          el("section", { "aria-label": "The neuron and its loss" },
            el("div", { class: "grid" },
              el("figure", {}, this.charts.distribution.host, this.facts),
              el("figure", {}, this.charts.mean.host),
              el("figure", { class: "loss" }, this.charts.curve.host, this.charts.surface.host, this.note),
            ),
          ),
          el("section", { "aria-labelledby": "clouds-title" },
            el("h2", { id: "clouds-title" }, "Single draws of the gradient"),
            el("p", { class: "quiet-text" }, "A dot is a draw, or as many as its area says. The red cross is the exact gradient; the bars span two standard errors to either side of the mean."),
            this.clouds,
            el("p", {}, this.more),
          ),
          this.code.element,
        ),
      ),
    );
  }

  #fit(specs) {
    const { estimators, name } = this.neuron.description;
    const fitting = specs.filter((spec) => estimators.includes(nameOf(spec)));
    const some = fitting.length ? fitting : estimators.slice(0, 3);
    this.estimators = new Estimators(this.catalog.estimators, estimators, some, () => this.schedule());
    this.chosen.replaceChildren(this.estimators.element);
    this.chosen.setAttribute("aria-label", `Those that fit ${name}`);
  }

  #refit() {
    const dims = this.neuron.description.event_ndim;
    if (dims !== this.numbers.dims) {
      this.numbers.set([], dims);
      this.unit = 0;
    }
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

  // What the code shows: the same clouds and figures.
  request() {
    const { neuron, objective, a, seed, estimators } = this.state();
    return { kind: "clouds", neuron, objective, a, seed, estimators, rows: this.#draws() };
  }

  #draws() {
    return Math.max(50, Math.min(400, Math.floor(4000 / this.numbers.numbers.length)));
  }

  // Soon, and at most one at a time: what is on its way may arrive, but not for long.
  schedule() {
    clearTimeout(this.timer);
    this.objective.imply("event_ndim", this.numbers.dims);
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
    const state = this.state();
    this.unit = state.unit = Math.min(state.unit, this.numbers.numbers.length - 1);
    keep("playground", state);
    this.more.href = `#/compare?${encodeURIComponent(JSON.stringify(state))}`;
    this.code.update();
    const parts = [this.#neuron(state, running.signal), this.#loss(state, running.signal), this.#gradients(state, running.signal)];
    const found = await Promise.allSettled(parts);
    if (running.signal.aborted) return;
    this.running = null;
    const wrong = found.find((one) => one.status === "rejected");
    trouble(wrong?.reason ?? null);
    this.pictures.setAttribute("aria-busy", "false");
  }

  // Rows of a in which one or two numbers take other values.
  #rows(changes) {
    return changes.map((change) => nest(this.numbers.numbers.map((one, at) => change[at] ?? one), this.numbers.shape));
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
    const column = (at) => draws.map((draw) => draw[at]);
    const shown = this.numbers.dims === 1 ? flat.map((_, at) => at) : [unit];
    const mean = average(column(unit));
    const active = average(column(unit).map((one) => Number(one > 0)));
    this.facts.textContent = `${this.#name(unit)} = ${number(flat[unit])}: E[h] = ${number(means[unit], 4)}, sampled ${number(mean, 4)}; P(h > 0) = ${number(chances[unit], 4)}, sampled ${number(active, 4)}.`;
    this.charts.distribution.describe(`The distribution of h. ${this.facts.textContent}`);
    this.charts.mean.describe(`E[h] and P(h > 0) as ${this.#name(unit)} goes from -6 to 6. ${this.facts.textContent}`);
    const names = ["E[h]", "P(h > 0)"];
    await Promise.all([
      this.charts.distribution.draw({
        rows: histogram(column(unit)),
        means: [{ of: "E[h], exact", mean: means[unit] }, { of: "sampled mean", mean }],
      }),
      this.charts.mean.draw({
        curve: sweep.flatMap((a, at) => [{ a, of: names[0], value: swept[at][unit] }, { a, of: names[1], value: sweptChances[at][unit] }]),
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

  // The exact values come with any estimate: of a plain estimator, or of the cheapest whose target is that of most.
  #cheapest(neuron) {
    const fitting = this.catalog.estimators.filter((one) => one.neurons.includes(neuron));
    const plain = PLAIN.find((name) => fitting.some((one) => one.name === name));
    if (plain) return plain;
    const targets = fitting.map((one) => one.target);
    const usual = targets.sort((one, two) => targets.filter((x) => x === two).length - targets.filter((x) => x === one).length)[0];
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
      this.note.textContent = "The exact loss is out of reach here.";
      return;
    }
    const [loss, ...losses] = exact.loss;
    const gradient = flatten(exact.gradient[0]);
    this.note.textContent = `E[L] = ${number(loss, 4)}; exact gradient (${gradient.slice(0, 8).map((one) => number(one)).join(", ")}${gradient.length > 8 ? ", …" : ""}).`;
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
    const half = (1.03 * EDGE) / (GRID - 1); // a little overlap: no seams
    const size = Math.hypot(gradient[unit], gradient[next]) || 1;
    const reach = 2.2;
    await known.draw({
      rows: losses.map((one, at) => ({ x: places[at][0] - half, x2: places[at][0] + half, y: places[at][1] - half, y2: places[at][1] + half, loss: one })),
      gradient: [{ x, y, x2: x + (reach * gradient[unit]) / size, y2: y + (reach * gradient[next]) / size }],
      here: [{ x, y }],
    });
  }

  async #gradients({ neuron, objective, seed, unit, estimators }, signal) {
    const rows = this.#draws();
    const a = Array(rows).fill(this.numbers.value());
    const clouds = estimators.map((estimator) => ({ label: labelOf(estimator), pending: true }));
    const draw = () => signal.aborted || this.#draw(clouds, unit);
    // together if they come soon; but those that warm a state up first keep the others waiting no longer than this
    let late = false;
    const timer = setTimeout(() => ((late = true), draw()), PATIENCE / 2);
    await Promise.all(estimators.map(async (estimator, at) => {
      const { label } = clouds[at];
      try {
        clouds[at] = { label, ...summary(await post("v1/estimate", { neuron, objective, estimator, a, draws: 1, seed }, signal)) };
      } catch (fault) {
        clouds[at] = { label, fault };
      }
      if (late) await draw();
    }));
    clearTimeout(timer);
    if (signal.aborted) return;
    if (!late) await draw();
    if (clouds.length && clouds.every((one) => one.fault)) throw clouds[0].fault;
  }

  // The clouds on the same axes; those that are pending stay as they were, and are faint.
  async #draw(clouds, unit) {
    const next = (unit + 1) % this.numbers.numbers.length;
    const alone = next === unit;
    const good = clouds.filter((one) => one.draws);
    const wide = span(good.flatMap((one) => [...one.draws.map((draw) => draw[unit]), one.exact?.[unit] ?? one.mean[unit]]));
    const tall = alone ? [-1.6, 1.6] : span(good.flatMap((one) => [...one.draws.map((draw) => draw[next]), one.exact?.[next] ?? one.mean[next]]));
    const names = new Set(clouds.map((one) => one.label));
    for (const [label, card] of this.cards) if (!names.has(label)) (card.element.remove(), this.cards.delete(label));
    const shades = (await palette()).filter((shade) => shade !== CROSS);
    await Promise.all(clouds.map((cloud, at) => this.#card(cloud, at).draw(cloud, { unit, next, alone, wide, tall, across: this.#name(unit), up: this.#name(next), shade: shades[at % shades.length] })));
  }

  #card({ label }, at) {
    if (!this.cards.has(label)) this.cards.set(label, new Card(label));
    const card = this.cards.get(label);
    if (this.clouds.children[at] !== card.element) this.clouds.insertBefore(card.element, this.clouds.children[at] ?? null);
    return card;
  }
}

// One estimator's cloud and its figures.
class Card {
  constructor(label) {
    this.chart = new Chart("cloud", `Single draws of ${label}`);
    this.figures = el("dl", { class: "figures" });
    this.fault = el("p", { class: "fault" });
    this.axes = el("p", { class: "quiet-text" });
    const name = label.split("(")[0];
    this.element = el("article", { class: "card" }, el("h3", {}, el("a", { href: `#/estimators/${encodeURIComponent(name)}` }, label)), this.chart.host, this.axes, this.figures, this.fault);
    this.label = label;
  }

  async draw(cloud, { unit, next, alone, wide, tall, across, up, shade }) {
    this.element.setAttribute("aria-busy", Boolean(cloud.pending));
    if (cloud.pending) return;
    this.fault.textContent = cloud.fault?.message ?? "";
    this.chart.host.hidden = this.figures.hidden = Boolean(cloud.fault);
    if (cloud.fault) return;
    const { draws, mean, error, exact, variance, evaluations } = cloud;
    const bias = exact === null ? null : mean[unit] - exact[unit];
    const efficiency = variance === 0 ? Infinity : 1 / (variance * evaluations);
    const outside = draws.filter((draw) => draw[unit] < wide[0] || draw[unit] > wide[1] || (!alone && (draw[next] < tall[0] || draw[next] > tall[1]))).length;
    const facts = [
      ["bias", bias === null ? "unknown" : `${number(bias)} ± ${number(error[unit], 2)}`],
      ["variance", number(variance)],
      ["evaluations", number(evaluations)],
      ["efficiency", number(efficiency)],
    ];
    this.figures.replaceChildren(...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    this.axes.textContent = `d/d${across}${alone ? "" : ` across, d/d${up} up`}; ${draws.length} draws${outside ? `, ${outside} outside` : ""}`;
    this.chart.describe(`Single draws of ${this.label}: ${facts.map((fact) => fact.join(" ")).join(", ")}`);
    const place = (draw, at) => ({ x: draw[unit], y: alone ? 2 * ((at * 0.618034) % 1) - 1 : draw[next] });
    const bar = (at) => [mean[at] - 2 * error[at], mean[at] + 2 * error[at]];
    const [left, right] = bar(unit);
    const [down, above] = alone ? [-1.3, 1.3] : bar(next);
    const middle = alone ? 0 : mean[next];
    await this.chart.draw(
      {
        rows: together(draws.map(place)),
        mean: [{ x: left, x2: right, y: middle, y2: middle }, { x: mean[unit], x2: mean[unit], y: down, y2: above }],
        exact: exact === null ? [] : [place(exact, 0.809017 / 0.618034)].map((one) => (alone ? { ...one, y: 0 } : one)),
      },
      { low: wide[0], high: wide[1], bottom: tall[0], top: tall[1], shade, flat: alone },
    );
  }
}

// Mean, standard error and variance of one draw, from rows that are draws.
function summary(answer) {
  const draws = answer.gradient.map(flatten);
  const mean = draws[0].map((_, at) => average(draws.map((draw) => draw[at])));
  const spread = mean.map((middle, at) => draws.reduce((sum, draw) => sum + (draw[at] - middle) ** 2, 0) / (draws.length - 1));
  return {
    draws,
    mean,
    error: spread.map((one) => Math.sqrt(one / draws.length)),
    variance: average(spread),
    evaluations: answer.evaluations,
    exact: answer.exact && flatten(answer.exact.gradient[0]),
  };
}

// Draws that fall on one place, as many do where units are binary, as one dot with their share.
function together(places) {
  const found = new Map();
  for (const place of places) {
    const key = `${place.x} ${place.y}`;
    if (found.has(key)) found.get(key).share += 1 / places.length;
    else found.set(key, { ...place, share: 1 / places.length });
  }
  return [...found.values()];
}

const average = (numbers) => numbers.reduce((sum, one) => sum + one, 0) / numbers.length;
const ticks = (count, low, high) => Array.from({ length: count }, (_, at) => low + ((high - low) * at) / (count - 1));

// Where nearly all lie, with some room; the same for every cloud.
function span(numbers) {
  const sorted = numbers.filter(Number.isFinite).sort((one, two) => one - two);
  if (!sorted.length) return [-1, 1];
  const low = sorted[Math.floor(0.005 * (sorted.length - 1))];
  const high = sorted[Math.ceil(0.995 * (sorted.length - 1))];
  const room = Math.max(0.08 * (high - low), 1e-3 * Math.max(Math.abs(low), Math.abs(high)), 1e-9);
  return [low - room, high + room];
}

// A bar for each value, where there are few, else for each of 40 bins.
function histogram(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  const places = [...counts.keys()].sort((one, two) => one - two);
  if (places.length <= 30) {
    const gaps = places.slice(1).map((one, at) => one - places[at]);
    const half = 0.3 * (gaps.length ? Math.min(...gaps) : 1);
    return places.map((one) => ({ h: one, low: one - half, high: one + half, share: counts.get(one) / values.length }));
  }
  const [low, high] = [places[0], places.at(-1)];
  const width = (high - low) / 40;
  const bins = Array(40).fill(0);
  for (const value of values) bins[Math.min(39, Math.floor((value - low) / width))] += 1;
  return bins.map((count, at) => ({ low: low + at * width, high: low + (at + 1) * width, share: count / values.length }));
}
