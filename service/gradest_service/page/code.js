// What is on screen, as code: it computes the same numbers.
import { el } from "./dom.js";
import { base, hasKey } from "./api.js";

// A JSON value as Python writes it.
export function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

const tensor = (a) => `torch.tensor(${python(a)}, dtype=torch.float32)`;

const PYTHON = {
  compare: ({ neuron, objective, a, estimators, draws, seed }) => `import gradest
import torch

table = gradest.compare(
    gradest.objective(${python(objective)}),
    ${tensor(a)},
    neuron=${python(neuron)},
    estimators=${python(estimators)},
    draws=${draws},
    seed=${seed},
)
print(table.to_markdown())
`,
  clouds: ({ neuron, objective, a, estimators, seed, rows }) => `import gradest
import torch

a = ${tensor(a)}
loss = gradest.objective(${python(objective)})
for estimator in ${python(estimators)}:
    # equal rows, each with noise of its own: ${rows} single draws
    found = gradest.estimate(loss, a.expand(${rows}, *a.shape), ${python(neuron)}, estimator, draws=1, seed=${seed})
    draws = found.gradient
    print(estimator, draws.mean(0), "±", draws.std(0) / ${rows}**0.5, "variance", draws.var(0).mean())
`,
};

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// curl, but for the body.
const post = (path) => `curl -s ${quoted(`${base}${path}`)} \\
  -H 'Content-Type: application/json' -H 'Accept: application/json'${hasKey() ? ` \\\n  -H "Authorization: Bearer $GRADEST_API_KEY"` : ""} \\
  -d `;

// JSON in a here-document where the shell replaces variables: no other text of it is meant for the shell.
const inert = (value) => JSON.stringify(value).replace(/[\\$`]/g, "\\$&");

const CURL = {
  compare: ({ kind, ...body }) => `${post("v1/compare")}${quoted(JSON.stringify(body))}
`,
  clouds: ({ neuron, objective, a, estimators, seed, rows }) => `# equal rows, each with noise of its own: ${rows} single draws
a=$(yes ${quoted(JSON.stringify(a))} | head -n ${rows} | paste -s -d , -)
for estimator in ${estimators.map((one) => quoted(JSON.stringify(one))).join(" ")}; do
${post("v1/estimate")}@- <<END
{"neuron": ${inert(neuron)}, "objective": ${inert(objective)}, "estimator": $estimator, "a": [$a], "draws": 1, "seed": ${seed}}
END
echo
done
`,
};

// Code for the request that `get` gives, kept up to date by `update`.
export function code(get) {
  const parts = [["Show as Python", PYTHON], ["Show as curl", CURL]].map(([title, write]) => {
    const text = el("pre", { tabindex: "0", "aria-label": title }, "");
    const said = el("span", { role: "status" });
    const copy = el("button", {
      type: "button",
      onclick: async () => {
        await navigator.clipboard.writeText(text.textContent);
        said.textContent = "copied";
      },
    }, "Copy");
    const element = el("details", { class: "code" }, el("summary", {}, title), text, el("div", { class: "row" }, copy, said));
    return { element, update: (request) => ((text.textContent = write[request.kind](request)), (said.textContent = "")) };
  });
  return { element: el("div", {}, parts.map((one) => one.element)), update: () => parts.forEach((one) => one.update(get())) };
}
