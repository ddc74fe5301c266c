// Nested arrays of numbers, as the API takes and gives them.

export const flatten = (value) => (Array.isArray(value) ? value.flatMap(flatten) : [value]);

export function shapeOf(value) {
  return Array.isArray(value) ? [value.length, ...shapeOf(value[0])] : [];
}

// The nested array of this shape whose numbers in order are `flat`.
export function nest(flat, shape) {
  if (shape.length < 2) return [...flat];
  const size = flat.length / shape[0];
  return Array.from({ length: shape[0] }, (_, row) => nest(flat.slice(row * size, (row + 1) * size), shape.slice(1)));
}
