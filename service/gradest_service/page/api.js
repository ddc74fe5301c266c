// Calls the service's public routes. Their address begins like this page's own, so that any prefix before it stays.
import { el, find } from "./dom.js";

export const base = new URL("./", location.href.split("#")[0]).href;
let key = null; // in memory only
let asking = null;

export const hasKey = () => key !== null;

export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const GONE = "The service does not answer. It may have been stopped; the page continues once it is back.";

function ask(reason) {
  asking ||= new Promise((resolve) => {
    const dialog = find("#key");
    const input = find("#key-value");
    find("#key-reason").textContent = reason;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const given = dialog.returnValue === "use" ? input.value.trim() : "";
        input.value = "";
        resolve(given || null);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

async function problem(response) {
  const text = await response.text();
  let detail = text.slice(0, 300); // as a proxy words it
  try {
    const found = JSON.parse(text);
    detail = found.detail ?? found.title ?? detail;
  } catch {
    // not JSON
  }
  const wait = response.headers.get("Retry-After");
  const again = wait && !/again/.test(detail) ? ` Try again in ${wait} s.` : "";
  return new ServiceError(`${detail || response.statusText}${again}`, response.status);
}

export async function call(path, { body, signal, accept = "application/json" } = {}) {
  const sent = key;
  const headers = { Accept: accept };
  if (sent !== null) headers.Authorization = `Bearer ${sent}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    response = await fetch(base + path, {
      method,
      headers,
      body: body && JSON.stringify(body),
      signal,
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(GONE);
  }
  if (response.status === 401) {
    const found = await problem(response);
    if (key === sent) {
      const given = await ask(found.message);
      if (given === null) throw found;
      key = given;
    }
    return call(path, { body, signal, accept });
  }
  if (!response.ok) throw await problem(response);
  return response;
}

const kept = new Map();

// Gets what stays the same while the service runs, once; a failure is not kept.
export function get(path) {
  if (!kept.has(path)) {
    const found = call(path).then((response) => response.json());
    found.catch(() => kept.delete(path));
    kept.set(path, found);
  }
  return kept.get(path);
}

export const post = async (path, body, signal) => (await call(path, { body, signal })).json();

// Yields the events of a stream in order: {event, data}.
export async function* events(path, body, signal) {
  const response = await call(path, { body, signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError(GONE);
    }
    if (part.done) return;
    const blocks = (rest + part.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = Object.fromEntries(
        block.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]),
      );
      if (found.event) yield { event: found.event, data: JSON.parse(found.data) };
    }
  }
}

// Shows above the view what went wrong; without an error, hides it.
export function trouble(error) {
  const place = find("#trouble");
  if (error?.name === "AbortError") return;
  if (error && !(error instanceof ServiceError)) console.error(error);
  place.hidden = !error;
  place.replaceChildren(...(error ? [el("strong", {}, "Something went wrong. "), error.message] : []));
}
