// All that is registered, and what did not load.
import { el, linked } from "./dom.js";
import { get } from "./api.js";
import { formula } from "./maths.js";

const KINDS = ["neurons", "estimators", "objectives"];

export async function show(root) {
  const [neurons, estimators, objectives, { plugins, failures }] = await Promise.all([...KINDS, "plugins"].map((kind) => get(`v1/${kind}`)));
  const filter = el("input", { type: "search", "aria-label": "Filter by name, summary or reference", placeholder: "filter", oninput: () => sift() });
  const cards = [];
  const section = (kind, entries) =>
    el("section", { "aria-labelledby": `${kind}-title` },
      el("h2", { id: `${kind}-title` }, kind[0].toUpperCase() + kind.slice(1), el("small", {}, ` ${entries.length}`)),
      el("div", { class: "cards" }, entries.map((entry) => {
        const made = card(kind, entry);
        cards.push([made, `${entry.name} ${entry.summary} ${entry.reference}`.toLowerCase()]);
        return made;
      })));
  const sift = () => cards.forEach(([made, text]) => (made.hidden = !text.includes(filter.value.trim().toLowerCase())));
  root.append(el("div", {},
    el("h1", {}, "Registry"),
    filter,
    failures.length
      ? el("section", { "aria-labelledby": "failures-title" }, el("h2", { id: "failures-title" }, "Did not load"), table(
          ["distribution", "version", "entry point", "phase", "error"],
          failures.map((one) => [one.distribution, one.version, one.entry_point, one.phase, one.error]),
        ))
      : null,
    section("estimators", estimators),
    section("neurons", neurons),
    section("objectives", objectives),
    el("section", { "aria-labelledby": "plugins-title" }, el("h2", { id: "plugins-title" }, "Plugins"),
      table(["distribution", "version", ...KINDS], plugins.map((one) => [one.distribution, one.version, ...KINDS.map((kind) => one[kind].length)])),
      failures.length ? null : el("p", { class: "quiet-text" }, "All of them loaded.")),
  ));
  return { title: "Registry" };
}

export const table = (head, rows) =>
  el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": head.join(", ") },
    el("table", {},
      el("thead", {}, el("tr", {}, head.map((one) => el("th", { scope: "col" }, one)))),
      el("tbody", {}, rows.map(([name, ...cells]) => el("tr", {}, el("th", { scope: "row" }, name), cells.map((one) => el("td", { class: typeof one === "number" ? "number" : "" }, one ?? "–")))))));

export const tags = (entry) => {
  const claims = [...new Set(Object.values(entry.bias ?? {}))];
  const found = [
    ...(entry.needs ?? []).map((need) => `needs ${need}`),
    ...(entry.off_support ? ["off the outputs too"] : []),
    ...claims.map((claim) => (claim === "none" ? "unbiased" : claim)),
  ];
  return el("ul", { class: "tags" }, found.map((one) => el("li", { class: one === "unbiased" ? "good" : "" }, one)));
};

function card(kind, entry) {
  return el("article", { class: "card" },
    el("h3", {}, el("a", { href: `#/${kind}/${encodeURIComponent(entry.name)}` }, entry.name)),
    el("p", {}, entry.summary),
    entry.formula ? formula(entry.formula) : null,
    tags(entry),
    entry.reference ? el("p", { class: "quiet-text" }, linked(entry.reference)) : null);
}
