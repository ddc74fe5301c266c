// What the browser remembers until the next visit, if it stores anything.

export function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that stores nothing
  }
}

export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}
