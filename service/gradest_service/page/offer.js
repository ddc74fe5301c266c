// Offers the scenes for newcomers above the playground, until the reader has declined them or has begun one.
import { el } from "./dom.js";
import { recall, remember } from "./memory.js";
import { SCENES } from "./scenes.js";

const NAME = "gradest-start";

export const dismiss = () => remember(NAME, "seen");

export function offer() {
  const [{ name }] = SCENES;
  const again = el("p", { class: "offer" }, el("a", { href: `#/start/${name}` }, "Show me around"));
  if (recall(NAME) !== null) return again;
  const decline = () => {
    dismiss();
    made.replaceWith(again);
    again.firstChild.focus();
  };
  const made = el("aside", { class: "offer", "aria-label": "For newcomers" },
    el("span", {}, "New here? Three short scenes walk through what is on screen:"),
    SCENES.map(({ name, title }) => el("a", { href: `#/start/${name}` }, title)),
    el("button", { type: "button", class: "quiet", onclick: decline }, "No, thanks"),
  );
  return made;
}
