// Shows what is on screen as code that computes the same numbers.
import { el } from "./dom.js";
import { base, hasKey } from "./api.js";
import { help } from "./guide.js";

// A JSON value, written as Python.
export function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    const items = Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one)}`);
    return `{${items.join(", ")}}`;
  }
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
    # ${rows} single draws: equal rows, each with its own noise
    found = gradest.estimate(loss, a.expand(${rows}, *a.shape), ${python(neuron)}, estimator, draws=1, seed=${seed})
    draws = found.gradient
    print(estimator, draws.mean(0), "±", draws.std(0) / ${rows}**0.5, "variance", draws.var(0).mean())
`,
};

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// A curl command without its body.
const post = (path) => {
  const key = hasKey() ? ` \\\n  -H "Authorization: Bearer $GRADEST_API_KEY"` : "";
  return `curl -s ${quoted(`${base}${path}`)} \\
  -H 'Content-Type: application/json' -H 'Accept: application/json'${key} \\
  -d `;
};

// JSON in a here-document in which the shell replaces variables: the shell must take the rest of it literally.
const inert = (value) => JSON.stringify(value).replace(/[\\$`]/g, "\\$&");

const CURL = {
  compare: ({ kind, ...body }) => `${post("v1/compare")}${quoted(JSON.stringify(body))}
`,
  clouds: ({ neuron, objective, a, estimators, seed, rows }) => {
    const specs = estimators.map((one) => quoted(JSON.stringify(one))).join(" ");
    const plugins = `"neuron": ${inert(neuron)}, "objective": ${inert(objective)}, "estimator": $estimator`;
    return `# ${rows} single draws: equal rows, each with its own noise
a=$(yes ${quoted(JSON.stringify(a))} | head -n ${rows} | paste -s -d , -)
for estimator in ${specs}; do
${post("v1/estimate")}@- <<END
{${plugins}, "a": [$a], "draws": 1, "seed": ${seed}}
END
echo
done
`;
  },
};

// Code for the request that `get` returns; `update` brings it up to date.
export function code(get) {
  const parts = [part("Show as Python", PYTHON), part("Show as curl", CURL)];
  return {
    element: el("div", {}, parts.map((one) => one.element)),
    update: () => parts.forEach((one) => one.update(get())),
  };
}

function part(title, write) {
  const text = el("pre", { tabindex: "0", "aria-label": title }, "");
  const status = el("span", { role: "status" });
  const copy = async () => {
    await navigator.clipboard.writeText(text.textContent);
    status.textContent = "copied";
  };
  const row = el("div", { class: "row" },
    el("button", { type: "button", onclick: copy }, "Copy"),
    help("code", "code and files"),
    status,
  );
  const update = (request) => {
    text.textContent = write[request.kind](request);
    status.textContent = "";
  };
  return { element: el("details", { class: "code" }, el("summary", {}, title), text, row), update };
}
