// Shows one neuron, estimator or objective at its own address.
import { el, linked, show as number } from "./dom.js";
import { addressOf } from "./address.js";
import { get } from "./api.js";
import { helpOf } from "./guide.js";
import { formula } from "./maths.js";
import { table, tags } from "./registry.js";

export async function show(root, { view, name }) {
  const entry = await get(`v1/${view}/${encodeURIComponent(name)}`);
  const kind = view.slice(0, -1);
  const options = Object.entries(entry.options.properties ?? {});
  root.append(
    el("div", {},
      el("p", {}, el("a", { href: "#/registry" }, "Registry"), ` / ${kind}`),
      el("h1", {}, entry.name, helpOf(view, entry.name)),
      el("p", { class: "lead" }, entry.summary),
      entry.formula ? formula(entry.formula) : null,
      tags(entry),
      el("p", {}, tryIt(view, entry)),
      entry.options.description ? el("div", { class: "prose" }, paragraphs(entry.options.description)) : null,
      entry.reference ? el("p", {}, "Reference: ", linked(entry.reference), ".") : null,
      options.length
        ? el("section", {},
            el("h2", {}, "Options"),
            table(
              ["option", "default", "meaning"],
              options.map(([key, option]) => [
                key,
                "default" in option ? (option.default === null ? "none" : JSON.stringify(option.default)) : "required",
                option.description ?? "",
              ]),
            ),
          )
        : null,
      entry.capabilities.length ? el("p", {}, `Capabilities: ${entry.capabilities.join(", ")}.`) : null,
      view === "neurons"
        ? el("section", {}, el("h2", {}, "Estimators that fit"), links("estimators", entry.estimators))
        : null,
      view === "estimators" ? el("section", {}, el("h2", {}, "On each neuron"), fits(entry)) : null,
      view === "estimators" ? el("section", {}, el("h2", {}, "Certificate"), certificates(entry)) : null,
    ),
  );
  return { title: entry.name };
}

// A docstring: its paragraphs, indented text unchanged, and code between backquotes.
const paragraphs = (text) =>
  text.split(/\n{2,}/).map((part) =>
    /^ /m.test(part)
      ? el("pre", { tabindex: "0" }, part)
      : el("p", {},
          part
            .replaceAll("\n", " ")
            .split("`")
            .map((words, at) => (at % 2 ? el("code", {}, words) : words)),
        ),
  );

const links = (kind, names) =>
  el("ul", { class: "tags" },
    names.map((one) => el("li", {}, el("a", { href: `#/${kind}/${encodeURIComponent(one)}` }, one))),
  );

function tryIt(view, entry) {
  let state = { [view.slice(0, -1)]: entry.name };
  if (view === "estimators") {
    const neuron = entry.neurons.includes("bernoulli") ? "bernoulli" : entry.neurons[0];
    state = { estimators: [entry.name], neuron };
  }
  return el("a", { href: addressOf("playground", state) }, "Try it in the playground");
}

function fits(entry) {
  const units = Object.keys(Object.values(entry.evaluations)[0] ?? {});
  return table(
    ["neuron", "claimed bias", ...units.map((one) => `K, D = ${one}`)],
    entry.neurons.map((neuron) => [
      el("a", { href: `#/neurons/${encodeURIComponent(neuron)}` }, neuron),
      entry.bias[neuron],
      ...Object.values(entry.evaluations[neuron]),
    ]),
  );
}

// The measured bias and its standard error, relative to the gradient unless that is zero.
function certificates({ certificates: found }) {
  if (!found?.length) return el("p", { class: "quiet-text" }, "Its package has no certificate of its bias.");
  const losses = [...new Set(found.flatMap((one) => one.records.map((record) => record.loss)))];
  const rows = found.flatMap((one) =>
    [...new Set(one.records.map((record) => record.logits))].map((logits) => [
      one.neuron,
      logits,
      ...losses.map((loss) => {
        const record = one.records.find((found) => found.loss === loss && found.logits === logits);
        if (!record) return null;
        const [scale, unit] = record.gradient ? [100 / record.gradient, " %"] : [1, ""];
        return `${number(record.bias * scale, 2)} ± ${number(record.standard_error * scale, 2)}${unit}`;
      }),
    ]),
  );
  return el("div", {},
    el("p", { class: "quiet-text" }, "The measured bias with its standard error, for each loss."),
    table(["neuron", "logits", ...losses], rows),
  );
}
