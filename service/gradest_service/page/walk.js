// The panel of a scene: what it says about the step that is shown, and the buttons to go on, back, and out of it.
import { el } from "./dom.js";

export class Walk {
  // `go` is called with the number of the step to show, and `close` to end the scene; `next` is the scene after this.
  constructor(scene, next, { go, close }) {
    this.scene = scene;
    this.next = next;
    this.count = el("small", {});
    this.text = el("p", { role: "status" });
    this.back = el("button", { type: "button", onclick: () => go(this.at - 1) }, "Back");
    this.forth = el("button", { type: "button", class: "primary", onclick: () => this.#forth(go, close) });
    const onkeydown = (event) => this.#press(event, close);
    this.element = el("section", { class: "walk", tabindex: "-1", "aria-labelledby": "walk-title", onkeydown },
      el("div", {}, el("h2", { id: "walk-title" }, scene.title, " ", this.count), this.text),
      el("div", { class: "row" },
        this.back,
        this.forth,
        el("button", { type: "button", class: "quiet", onclick: close }, "Close"),
      ),
    );
  }

  get #last() {
    return this.at === this.scene.steps.length - 1;
  }

  show(at) {
    this.at = at;
    this.count.textContent = `step ${at + 1} of ${this.scene.steps.length}`;
    this.text.textContent = this.scene.steps[at].text;
    this.forth.textContent = !this.#last ? "Next" : this.next ? `Next: ${this.next.title}` : "Done";
    if (at === 0 && document.activeElement === this.back) this.forth.focus();
    this.back.disabled = at === 0;
  }

  #forth(go, close) {
    if (!this.#last) go(this.at + 1);
    else if (this.next) location.hash = `#/start/${this.next.name}`;
    else close();
  }

  #press(event, close) {
    const keys = { ArrowRight: () => this.forth.click(), ArrowLeft: () => this.back.click(), Escape: close };
    const pressed = keys[event.key];
    if (!pressed || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    pressed();
  }
}
