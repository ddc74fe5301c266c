// A table that a reader can sort; the columns of a comparison, and its rows as CSV.
import { el, show as number } from "./dom.js";

export const COLUMNS = [
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
export const WORDS = ["estimator", "claim"]; // the columns that hold no numbers

export class ResultTable {
  // `columns` are names and titles, and `words` the names of those that hold no numbers. `sort` is a column and a direction, 1 or
  // -1; `changed` is called with these when the reader sorts by another. `made` has functions of a row for cells of their own.
  constructor(columns, words, sort, changed, made = {}) {
    this.columns = columns;
    this.words = words;
    this.sort = sort;
    this.changed = changed;
    this.made = made;
    this.rows = [];
    this.element = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Results", hidden: true });
  }

  show(rows) {
    this.rows = rows;
    this.element.hidden = false;
    const head = this.columns.map(([name, title]) => this.#heading(name, title));
    const body = this.#sorted().map((row) => el("tr", {}, this.columns.map(([name]) => this.#cell(name, row))));
    this.element.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
  }

  #sorted() {
    const [column, direction] = this.sort;
    const key = (row) => (this.words.includes(column) ? row[column] : Number(row[column] ?? NaN));
    return [...this.rows].sort((one, two) => {
      const [x, y] = [key(one), key(two)];
      if (typeof x === "string") return direction * x.localeCompare(y);
      return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : direction * (x - y || 0);
    });
  }

  #heading(name, title) {
    const [column, direction] = this.sort;
    const [order, arrow] = name !== column ? [false, ""] : direction > 0 ? ["ascending", " ↑"] : ["descending", " ↓"];
    const kind = name === this.words[0] ? "name" : this.words.includes(name) ? false : "number";
    return el("th", { scope: "col", class: kind, "aria-sort": order },
      el("button", { type: "button", "data-column": name, onclick: () => this.#sortBy(name) },
        title,
        el("span", { "aria-hidden": "true" }, arrow),
      ),
    );
  }

  #sortBy(name) {
    const [column, direction] = this.sort;
    this.sort = [name, name === column ? -direction : 1];
    this.show(this.rows);
    this.changed(this.sort);
    this.element.querySelector(`[data-column=${name}]`).focus();
  }

  #cell(name, row) {
    const words = this.words.includes(name);
    const content = this.made[name]?.(row) ?? (words ? row[name] : number(row[name]));
    if (name === this.words[0]) return el("th", { scope: "row" }, content);
    return el("td", { class: words ? "" : "number" }, content);
  }
}

export function toCsv(rows) {
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const names = COLUMNS.map(([name]) => name);
  const lines = [names, ...rows.map((row) => names.map((name) => quoted(String(row[name] ?? ""))))];
  return lines.map((line) => line.join(",")).join("\r\n") + "\r\n";
}
