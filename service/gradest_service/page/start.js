// A start for newcomers. At each step, a scene sets the controls of a view to an example, runs it, and shows what it
// speaks of.
import { el } from "./dom.js";
import { addressOf, saveInAddress } from "./address.js";
import { dismiss } from "./offer.js";
import { SCENES } from "./scenes.js";
import { Walk } from "./walk.js";

const VIEWS = { playground: () => import("./playground.js"), compare: () => import("./compare.js") };
const MARGIN = 16; // pixels above what is spoken of, if it is taller than its room

export async function show(root, { name, signal }) {
  const [wanted, step] = name.split("/");
  const at = Math.max(0, SCENES.findIndex((one) => one.name === wanted));
  const scene = SCENES[at];
  const first = Math.min(Math.max(1, Math.floor(Number(step)) || 1), scene.steps.length) - 1;
  const { open } = await VIEWS[scene.view]();
  const stage = el("div");
  const view = await open(stage, { ...scene.state, ...scene.steps[first].state }, signal, () => {});
  const showing = new Scene(scene, SCENES[at + 1], stage, view);
  root.append(stage, showing.walk.element);
  signal.addEventListener("abort", () => showing.stop());
  dismiss();
  return { title: scene.title, top: scene.view, focus: showing.walk.element, start: () => showing.go(first) };
}

class Scene {
  constructor(scene, next, stage, view) {
    this.scene = scene;
    this.stage = stage;
    this.view = view;
    this.walk = new Walk(scene, next, { go: (at) => this.go(at), close: () => this.close() });
  }

  // Shows a step. What is computed already is not computed again, unless the reader has changed it.
  async go(at) {
    if (!(at in this.scene.steps)) return;
    const turn = (this.turn = Symbol());
    const { state, shows, column } = this.scene.steps[at];
    this.walk.show(at);
    saveInAddress(`start/${this.scene.name}/${at + 1}`);
    this.#pointAt(shows, column);
    const wanted = { ...this.scene.state, ...state };
    if (JSON.stringify([wanted, this.view.state()]) === this.shown) return;
    this.view.set(wanted);
    await this.view.run();
    if (turn !== this.turn) return;
    this.shown = JSON.stringify([wanted, this.view.state()]);
    this.#pointAt(shows, column);
  }

  // Marks the element that is spoken of, and scrolls it into what the panel leaves of the window.
  #pointAt(selector, column) {
    for (const one of this.stage.querySelectorAll(".spoken-of")) one.classList.remove("spoken-of");
    const found = this.stage.querySelector(selector);
    if (!found) return; // it is there once the step has been computed
    const folded = (one) => one?.closest("details:not([open])");
    for (let one = folded(found); one; one = folded(one)) one.open = true;
    found.classList.add("spoken-of");
    const cell = column && found.querySelector(`[data-column=${column}]`)?.closest("th"); // none before the table is computed
    if (cell) found.scrollLeft = cell.offsetLeft + cell.offsetWidth - found.clientWidth;
    const room = this.walk.element.getBoundingClientRect().height;
    const { top, height } = found.getBoundingClientRect();
    scrollBy({ top: top - Math.max(MARGIN, (innerHeight - room - height) / 2) });
  }

  stop() {
    this.turn = null;
  }

  // Ends the scene; the view stays as it is.
  close() {
    location.hash = addressOf(this.scene.view, this.view.state());
  }
}
