// The address after #: it names the view that is shown, and holds the view's state as JSON after a question mark.
import { trouble } from "./api.js";

let saved = null; // the address, if the view that is shown has saved it

export function readAddress() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/");
  let state = {};
  try {
    state = JSON.parse(decodeURIComponent(query) || "{}");
  } catch {
    trouble(new Error("The state in the link cannot be read, so this view is without it."));
  }
  return { view, name: decodeURIComponent(rest.join("/")), state };
}

export const addressOf = (view, state) =>
  state === undefined ? `#/${view}` : `#/${view}?${encodeURIComponent(JSON.stringify(state))}`;

// Saves the state of the view that is shown, without a step in the browser's history.
export function saveInAddress(view, state) {
  saved = addressOf(view, state);
  history.replaceState(null, "", saved);
}

export const isSavedAddress = () => location.hash === saved;
