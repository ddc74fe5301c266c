// Trains binary units in JavaScript, with tensors as safetensors, a loss that stays here, and the gradient from the service.
// Run by: node train.mjs http://127.0.0.1:8000

const TYPE = "application/vnd.safetensors";
const KINDS = { F32: Float32Array, F64: Float64Array, U8: Uint8Array };

// {name: {shape, data: Float32Array}} and the other fields, to a body
function pack(tensors, fields) {
  const header = { __metadata__: { request: JSON.stringify(fields) } };
  let end = 0;
  for (const [name, { shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype: "F32", shape, data_offsets: [end, (end += data.byteLength)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(text.length / 8) * 8;
  const body = new Uint8Array(8 + padded + end).fill(32, 8, 8 + padded);
  new DataView(body.buffer).setBigUint64(0, BigInt(padded), true);
  body.set(text, 8);
  for (const [name, { data }] of Object.entries(tensors)) {
    body.set(new Uint8Array(data.buffer), 8 + padded + header[name].data_offsets[0]);
  }
  return body;
}

// a body to the tensors by name, and the other fields
function unpack(buffer) {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const { __metadata__, ...header } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const found = JSON.parse(__metadata__.response);
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    found[name] = { shape, data: new KINDS[dtype](buffer.slice(8 + size + begin, 8 + size + end)) };
  }
  return found;
}

async function post(url, path, tensors, fields) {
  const headers = { "Content-Type": TYPE, Accept: TYPE };
  const answer = await fetch(url + path, { method: "POST", headers, body: pack(tensors, fields) });
  if (!answer.ok) throw new Error(await answer.text());
  return unpack(await answer.arrayBuffer());
}

const [url] = process.argv.slice(2);
const units = 6;
const target = [1, 0, 1, 0, 1, 1];
const a = { shape: [1, units], data: new Float32Array(units) };
const pair = { neuron: "bernoulli", estimator: "disarm" };
const seen = { "mean loss": [], "first a": [Array.from(a.data)] };
seen["first h"] = [Array.from((await post(url, "/v1/sample", { a }, { neuron: "bernoulli", seed: 0 })).h.data)];

for (let step = 0; step < 60; step++) {
  const draw = await post(url, "/v1/forward", { a }, { ...pair, seed: step });
  const [K] = draw.points.shape;
  const loss = { shape: [K, 1], data: new Float32Array(K) };
  for (let k = 0; k < K; k++) {
    for (let i = 0; i < units; i++) loss.data[k] += (draw.points.data[k * units + i] - target[i]) ** 2;
  }
  const { seed, digest } = draw;
  const { gradient, value } = await post(url, "/v1/backward", { a, loss }, { ...pair, seed, digest });
  for (let i = 0; i < units; i++) a.data[i] -= gradient.data[i];
  seen["mean loss"].push(value.data[0] / units);
}
const mean = (list) => list.reduce((x, y) => x + y, 0) / list.length;
console.log(JSON.stringify({ ...seen, "mean loss": [seen["mean loss"].slice(0, 5), seen["mean loss"].slice(-5)].map(mean) }));
