// The leaderboard: the results that are kept with gradest, by problem, and a card for each estimator.
import { el, field, select, show as number } from "./dom.js";
import { saveInAddress } from "./address.js";
import { call } from "./api.js";
import { Chart, prepare } from "./charts.js";
import { help } from "./guide.js";
import { ResultTable } from "./results.js";
import { average } from "./stats.js";

const COLUMNS = [
  ["rank", "place"],
  ["label", "estimator"],
  ["mean", "value"],
  ["spread", "± SD"],
  ["seeds", "seeds"],
  ["behind", "behind the first"],
  ["behind_error", "± SE"],
  ["per_draw", "K"],
  ["evaluations", "evaluations"],
  ["seconds", "seconds"],
  ["claim", "claimed bias"],
  ["cosine", "least cosine"],
];
const WORDS = ["label", "claim", "problem"];
const CELLS = { mean: (row) => number(row.mean, 5) };
const ALL = "all problems";
const CURVES = 10; // at most, in a chart

export async function show(root, { name, state }) {
  prepare();
  const boards = await call("page/leaderboard.json").then((answer) => answer.json());
  return name ? showCard(root, boards, name) : showBoards(root, boards, state);
}

const cardOf = (label) => `#/leaderboard/${encodeURIComponent(label)}`;

// What cannot be told by chance from the first is what its standard error says.
const EXPLAINED =
  "Each estimator had the same data in the same order, and the same noise. The value is the mean over seeds, ± its standard " +
  "deviation. Behind the first: the mean of the paired differences from the first place, ± their standard error. K: the " +
  "evaluations of the loss in a draw. Least cosine: that of the mean gradient with the exact one, in the estimator's certificate.";

function showBoards(root, boards, given) {
  const state = { problem: ALL, words: "", unbiased: false, sort: ["rank", 1], ...given };
  const keep = () => saveInAddress("leaderboard", state);
  const parts = boards.map((board) => new Board(board, state, keep));
  const none = el("p", { role: "status", hidden: true }, "No estimator with results matches.");
  const sift = () => {
    for (const part of parts) part.sift(state);
    none.hidden = parts.some((part) => !part.element.hidden);
  };
  const changed = (name) => (value) => {
    state[name] = value;
    sift();
    keep();
  };
  const words = el("input", {
    type: "search",
    value: state.words,
    placeholder: "filter",
    oninput: () => changed("words")(words.value),
  });
  const unbiased = el("input", {
    type: "checkbox",
    checked: state.unbiased,
    onchange: () => changed("unbiased")(unbiased.checked),
  });
  const names = [ALL, ...boards.map((board) => board.key)];
  root.append(
    el("h1", {}, "Leaderboard", help("leaderboard", "the leaderboard")),
    el("p", { class: "prose" }, EXPLAINED),
    el("div", { class: "row" },
      field("problem", select(names, state.problem, changed("problem"))),
      field("estimator", words),
      field("unbiased only", unbiased),
    ),
    none,
    ...parts.map((part) => part.element),
  );
  sift();
  return { title: "Leaderboard", start: () => parts.forEach((part) => part.start()) };
}

// The table of one problem, and the curves of the first estimators if there are any.
class Board {
  constructor(board, state, keep) {
    this.board = board;
    const { problem, key } = board;
    this.table = new ResultTable(
      COLUMNS,
      WORDS,
      state.sort,
      (sort) => {
        state.sort = sort;
        keep();
      },
      { ...CELLS, label: (row) => el("a", { href: cardOf(row.label) }, row.label) },
    );
    this.chart = new Chart("training", `Training curves of the first estimators on ${key}`);
    this.figure = el("figure", {}, this.chart.host);
    this.element = el("section", { "aria-labelledby": `board-${key}` },
      el("h2", { id: `board-${key}` }, `${key}: ${problem.title}`),
      el("p", {}, `Value: ${problem.metric}, in ${problem.unit}; the ${problem.better} the better. Tuned: ${problem.tuned}`),
      el("details", {}, el("summary", {}, "What is run"), el("p", { class: "prose" }, problem.text), settings(problem)),
      this.table.element,
      this.figure,
    );
  }

  sift({ problem, words, unbiased }) {
    const text = words.trim().toLowerCase();
    this.rows = this.board.standings.filter(
      (row) => row.label.toLowerCase().includes(text) && (!unbiased || row.claim.startsWith("none")),
    );
    this.element.hidden = !this.rows.length || ![ALL, this.board.key].includes(problem);
    this.table.show(this.rows);
    if (this.started) this.start();
  }

  start() {
    this.started = true;
    const curves = this.rows.slice(0, CURVES).flatMap(curve);
    this.figure.hidden = !curves.length;
    if (curves.length && !this.element.hidden) this.chart.draw({ rows: curves });
  }
}

// The mean over seeds, at the steps that all runs have.
function curve({ label, runs }) {
  const [first, ...others] = runs.map((run) => new Map(run.curve));
  return [...(first ?? new Map()).keys()]
    .filter((step) => others.every((one) => one.has(step)))
    .map((step) => ({ estimator: label, step, value: average([first, ...others].map((one) => one.get(step))) }));
}

const settings = (problem) =>
  el("p", { class: "quiet-text" },
    `Settings: ${Object.entries(problem.settings).map(([name, value]) => `${name} ${value}`).join(", ")}.`,
  );

// Everything about one estimator; the address of this view is a link to it.
function showCard(root, boards, name) {
  const found = boards.flatMap((board) =>
    board.standings.filter((row) => row.label === name).map((row) => ({ ...row, problem: board.key, of: board.standings.length })),
  );
  root.append(el("p", {}, el("a", { href: "#/leaderboard" }, "Leaderboard")), el("h1", {}, name));
  if (!found.length) {
    root.append(el("p", { role: "status" }, "There are no results of an estimator with this name."));
    return { title: name };
  }
  const [first] = found;
  const runs = found.flatMap((row) => row.runs);
  const several = (what) => [...new Set(runs.map((run) => run[what]))].join("; ");
  const columns = [["problem", "problem"], ["neuron", "neuron"], ...COLUMNS.filter(([column]) => column !== "label")];
  const table = new ResultTable(columns, [...WORDS, "neuron"], ["problem", 1], () => {}, {
    ...CELLS,
    rank: (row) => (row.rank === null ? "failed" : `${number(row.rank)} of ${row.of}`),
  });
  table.show(found);
  root.append(
    el("p", {},
      `From ${first.distribution}; needs ${first.needs.join(" and ")}. Runs of gradest ${several("gradest")} on ${several("machine")}. `,
      first.distribution.startsWith("gradest ")
        ? el("a", { href: `#/estimators/${encodeURIComponent(first.estimator.name)}` }, "Its formula and certificate")
        : null,
    ),
    table.element,
    ...[...new Set(runs.map((run) => run.failure).filter(Boolean))].map((failure) => el("p", {}, `Failed: ${failure}`)),
  );
  return { title: name };
}
