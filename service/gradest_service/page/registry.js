// Shows every registered plugin, and the plugins that did not load.
import { el, linked } from "./dom.js";
import { get } from "./api.js";
import { help } from "./guide.js";
import { formula } from "./maths.js";

const KINDS = ["neurons", "estimators", "objectives"];

export async function show(root) {
  const [neurons, estimators, objectives, { plugins, failures }] = await Promise.all(
    [...KINDS, "plugins"].map((kind) => get(`v1/${kind}`)),
  );
  const filter = el("input", {
    type: "search",
    "aria-label": "Filter by name, summary or reference",
    placeholder: "filter",
    oninput: () => sift(),
  });
  const cards = [];
  const sections = [];
  const none = el("p", { role: "status", hidden: true }, "Nothing that is registered contains these words.");
  const section = (kind, entries) => {
    const made = el("section", { "aria-labelledby": `${kind}-title` },
      el("h2", { id: `${kind}-title` }, kind[0].toUpperCase() + kind.slice(1), el("small", {}, ` ${entries.length}`)),
      el("div", { class: "cards" },
        entries.map((entry) => {
          const made = card(kind, entry);
          cards.push([made, `${entry.name} ${entry.summary} ${entry.reference}`.toLowerCase()]);
          return made;
        }),
      ),
    );
    sections.push(made);
    return made;
  };
  const sift = () => {
    for (const [made, text] of cards) made.hidden = !text.includes(filter.value.trim().toLowerCase());
    for (const one of sections) one.hidden = !one.querySelector(".card:not([hidden])");
    none.hidden = !sections.every((one) => one.hidden);
  };
  root.append(
    el("div", {},
      el("h1", {}, "Registry", help("registry", "the registry")),
      filter,
      none,
      failures.length
        ? el("section", { "aria-labelledby": "failures-title" },
            el("h2", { id: "failures-title" }, "Did not load"),
            table(
              ["distribution", "error", "phase", "entry point", "version"],
              failures.map((one) => [one.distribution, one.error, one.phase, one.entry_point, one.version]),
            ),
          )
        : null,
      section("estimators", estimators),
      section("neurons", neurons),
      section("objectives", objectives),
      el("section", { "aria-labelledby": "plugins-title" },
        el("h2", { id: "plugins-title" }, "Plugins"),
        table(
          ["distribution", "version", ...KINDS],
          plugins.map((one) => [one.distribution, one.version, ...KINDS.map((kind) => one[kind].length)]),
        ),
        failures.length ? null : el("p", { class: "quiet-text" }, "All plugins loaded."),
      ),
    ),
  );
  return { title: "Registry" };
}

const numeric = (cell) => typeof cell === "number" || / ± /.test(cell);

export const table = (head, rows) => {
  const align = (at) => (rows.some((row) => numeric(row[at])) ? "number" : false);
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": head.join(", ") },
    el("table", {},
      el("thead", {},
        el("tr", {}, head.map((one, at) => el("th", { scope: "col", class: at ? align(at) : "name" }, one))),
      ),
      el("tbody", {},
        rows.map(([name, ...cells]) =>
          el("tr", {},
            el("th", { scope: "row" }, name),
            cells.map((one, at) => el("td", { class: align(at + 1) }, one ?? "–")),
          ),
        ),
      ),
    ),
  );
};

export const tags = (entry) => {
  const claims = [...new Set(Object.values(entry.bias ?? {}))];
  const found = [
    ...(entry.needs ?? []).map((need) => `needs ${need}`),
    ...(entry.off_support ? ["needs relaxed points"] : []),
    ...claims.map((claim) => claim.replace(/^none/, "unbiased")),
  ];
  return el("ul", { class: "tags" }, found.map((one) => el("li", { class: one.startsWith("unbiased") ? "good" : "" }, one)));
};

function card(kind, entry) {
  return el("article", { class: "card" },
    el("h3", {}, el("a", { href: `#/${kind}/${encodeURIComponent(entry.name)}` }, entry.name)),
    el("p", {}, entry.summary),
    entry.formula ? formula(entry.formula) : null,
    tags(entry),
    entry.reference ? el("p", { class: "quiet-text" }, linked(entry.reference)) : null,
  );
}
