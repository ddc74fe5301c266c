// One estimator's cloud of single draws, with its figures, on a card.
import { el, show as number } from "./dom.js";
import { Chart } from "./charts.js";
import { together } from "./stats.js";

export class CloudCard {
  constructor(label) {
    this.chart = new Chart("cloud", `Single draws of ${label}`);
    this.figures = el("dl", { class: "figures" });
    this.fault = el("p", { class: "fault" });
    this.axes = el("p", { class: "quiet-text" });
    const name = label.split("(")[0];
    this.element = el("article", { class: "card" },
      el("h3", {}, el("a", { href: `#/estimators/${encodeURIComponent(name)}` }, label)),
      this.chart.host,
      this.axes,
      this.figures,
      this.fault,
    );
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
    const beyond = (value, [low, high]) => value < low || value > high;
    const outside = draws.filter(
      (draw) => beyond(draw[unit], wide) || (!alone && beyond(draw[next], tall)),
    ).length;
    const facts = [
      ["bias", bias === null ? "unknown" : `${number(bias)} ± ${number(error[unit], 2)}`],
      ["variance", number(variance)],
      ["evaluations", number(evaluations)],
      ["efficiency", number(efficiency)],
    ];
    this.figures.replaceChildren(
      ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    );
    const axes = alone ? `d/d${across}` : `d/d${across} across, d/d${up} up`;
    this.axes.textContent = `${axes}; ${draws.length} draws${outside ? `, ${outside} outside` : ""}`;
    this.chart.describe(`Single draws of ${this.label}: ${facts.map((fact) => fact.join(" ")).join(", ")}`);
    // the draws of a single unit are spread over the height, by multiples of the golden ratio
    const place = (draw, at) => ({ x: draw[unit], y: alone ? 2 * ((at * 0.618034) % 1) - 1 : draw[next] });
    const bar = (at) => [mean[at] - 2 * error[at], mean[at] + 2 * error[at]];
    const [left, right] = bar(unit);
    const [down, above] = alone ? [-1.3, 1.3] : bar(next);
    const middle = alone ? 0 : mean[next];
    await this.chart.draw(
      {
        rows: together(draws.map(place)),
        mean: [
          { x: left, x2: right, y: middle, y2: middle },
          { x: mean[unit], x2: mean[unit], y: down, y2: above },
        ],
        exact: exact === null ? [] : [place(exact, 0.809017 / 0.618034)].map((one) => (alone ? { ...one, y: 0 } : one)),
      },
      { low: wide[0], high: wide[1], bottom: tall[0], top: tall[1], shade, flat: alone },
    );
  }
}
