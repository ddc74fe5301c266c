// Statistics of draws, and the shapes in which charts take them.
import { flatten } from "./arrays.js";

// The mean, its standard error and the variance of one draw, from an answer whose rows are draws.
export function summary(answer) {
  const draws = answer.gradient.map(flatten);
  const mean = draws[0].map((_, at) => average(draws.map((draw) => draw[at])));
  const spread = mean.map(
    (middle, at) => draws.reduce((sum, draw) => sum + (draw[at] - middle) ** 2, 0) / (draws.length - 1),
  );
  return {
    draws,
    mean,
    error: spread.map((one) => Math.sqrt(one / draws.length)),
    variance: average(spread),
    evaluations: answer.evaluations,
    exact: answer.exact && flatten(answer.exact.gradient[0]),
  };
}

// Draws at the same place, of which there are many if units are binary, as one dot with their share.
export function together(places) {
  const found = new Map();
  for (const place of places) {
    const key = `${place.x} ${place.y}`;
    if (found.has(key)) found.get(key).share += 1 / places.length;
    else found.set(key, { ...place, share: 1 / places.length });
  }
  return [...found.values()];
}

export const average = (numbers) => numbers.reduce((sum, one) => sum + one, 0) / numbers.length;
export const ticks = (count, low, high) =>
  Array.from({ length: count }, (_, at) => low + ((high - low) * at) / (count - 1));

// The range that holds nearly all of the numbers, with a margin.
export function span(numbers) {
  const sorted = numbers.filter(Number.isFinite).sort((one, two) => one - two);
  if (!sorted.length) return [-1, 1];
  const low = sorted[Math.floor(0.005 * (sorted.length - 1))];
  const high = sorted[Math.ceil(0.995 * (sorted.length - 1))];
  const room = Math.max(0.08 * (high - low), 1e-3 * Math.max(Math.abs(low), Math.abs(high)), 1e-9);
  return [low - room, high + room];
}

// A bar for each value if there are few, else a bar for each of 40 bins.
export function histogram(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  const places = [...counts.keys()].sort((one, two) => one - two);
  if (places.length <= 30) {
    const gaps = places.slice(1).map((one, at) => one - places[at]);
    const half = 0.3 * (gaps.length ? Math.min(...gaps) : 1);
    const share = (one) => counts.get(one) / values.length;
    return places.map((one) => ({ h: one, low: one - half, high: one + half, share: share(one) }));
  }
  const [low, high] = [places[0], places.at(-1)];
  const width = (high - low) / 40;
  const bins = Array(40).fill(0);
  for (const value of values) bins[Math.min(39, Math.floor((value - low) / width))] += 1;
  return bins.map((count, at) => ({
    low: low + at * width,
    high: low + (at + 1) * width,
    share: count / values.length,
  }));
}
