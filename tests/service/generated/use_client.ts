// Samples, and estimates a gradient of a loss that stays here, through the client that openapi-typescript and openapi-fetch make.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };
type Numbers = components["schemas"]["NestedNumbersOut"];
type State = components["schemas"]["ForwardRequest"]["state"];

const client = createClient<paths, "application/json" | "application/problem+json">({
  baseUrl: process.argv[2],
  headers: { Accept: "application/json" },
});

/** What came, or an error with the words of the service. */
function unwrap<T>({ data, error }: { data?: T; error?: { detail: string } }): T {
  if (data === undefined) throw new Error(error?.detail ?? "no answer");
  return data;
}

/** Nested arrays of any depth as one; "NaN", "Infinity" and "-Infinity" become numbers too. */
const flat = (numbers: Numbers): number[] =>
  Array.isArray(numbers) ? (numbers as Numbers[]).flatMap(flat) : [Number(numbers)];

const a = [[0.5, -1, 2], [-0.25, 0.125, 0]];
const pair = { neuron: "bernoulli", estimator: { name: "reinforce_average", samples: 2 }, a };

const sample = unwrap(await client.POST("/v1/sample", { body: { neuron: "noisy_rectifier", a, samples: 3, seed: 7 } }));

const steps = [];
let state: State; // undefined in the first step
for (const seed of [1, 2]) {
  const draw = unwrap(await client.POST("/v1/forward", { body: { ...pair, seed, state } }));
  const points = draw.points as number[][][];
  const loss = points.map((batch) => batch.map((row) => row.reduce((sum, h) => sum + h, 0) ** 2));
  const body = { ...pair, seed: draw.seed, digest: draw.digest, state, loss };
  const step = unwrap(await client.POST("/v1/backward", { body }));
  state = step.state as State; // its numbers are finite
  steps.push({ points, gradient: step.gradient, value: step.value, state });
}

const objective = { name: "quadratic", target: 0.499 };
const one = { neuron: "bernoulli", estimator: "rloo", objective, a, draws: 1, seed: 3 };
const estimate = unwrap(await client.POST("/v1/estimate", { body: one }));
const table = unwrap(
  await client.POST("/v1/compare", { body: { neuron: "bernoulli", objective, a, draws: 10, seed: 3, estimators: ["rloo"] } }),
);
const neuron = unwrap(await client.GET("/v1/neurons/{name}", { params: { path: { name: "bernoulli" } } }));
const ranking = unwrap(await client.GET("/v1/recommend", { params: { query: { bring: ["loss", "grad"], evaluations: 2 } } }));

// numbers that JavaScript has and the service refuses
const refused: Record<string, string> = {};
const wrong = { seed: { a, seed: 2 ** 53 }, nan: { a: [[Number.NaN]] }, typed: { a: new Float32Array(3) as unknown as number[] } };
for (const [name, fields] of Object.entries(wrong)) {
  const { error } = await client.POST("/v1/sample", { body: { neuron: "bernoulli", ...fields } });
  refused[name] = error?.detail ?? "";
}

console.log(
  JSON.stringify({
    sample: sample.h,
    steps,
    variance: flat(estimate.variance).map(String),
    rows: table.rows.map((row) => row.estimator),
    neuron: neuron.name,
    ranked: ranking.rows.length,
    refused,
  }),
);
