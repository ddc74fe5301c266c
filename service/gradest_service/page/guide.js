// Marks beside controls, each a link to the place of the guide that explains the control.
//
// A link is hidden unless the service has the page that it leads to: a checkout may not have built the guide, and the
// guide has no pages of other packages' plugins.
import { el } from "./dom.js";
import { base, get } from "./api.js";

// The places, by what they explain. A test looks for each in the sources of the guide.
export const PLACES = {
  "pre-activations": "guides/page.html#pre-activations",
  noise: "guides/page.html#noise-and-seed",
  neurons: "guides/page.html#neuron",
  objectives: "guides/page.html#objective",
  estimators: "guides/page.html#estimators",
  pictures: "guides/page.html#what-is-drawn",
  clouds: "guides/page.html#single-draws",
  draws: "guides/page.html#draws",
  results: "guides/page.html#the-table",
  charts: "guides/page.html#the-charts",
  code: "guides/page.html#code-and-files",
  leaderboard: "guides/page.html#leaderboard",
  registry: "guides/page.html#registry",
  key: "guides/page.html#api-key",
};

// The place that describes the options of a plugin of a kind, such as neurons.
const placeOf = (kind, name) => `reference/${kind}/${encodeURIComponent(name)}.html#options`;

// Shows a link to the guide once it is known that the guide has the page.
export async function showIfServed(link, place) {
  const pages = await get("page/guide.json").catch(() => []); // without an answer, as without a guide
  link.hidden = !pages.includes(decodeURIComponent(place.split("#")[0]));
}

function mark(place, about) {
  const link = el("a", { class: "help", href: `${base}guide/${place}`, title: "In the guide", hidden: true },
    el("span", { "aria-hidden": "true" }, "?"),
    el("span", { class: "unseen" }, `In the guide: ${about}`),
  );
  showIfServed(link, place);
  return link;
}

export const help = (topic, about) => mark(PLACES[topic], about);
export const helpOf = (kind, name) => mark(placeOf(kind, name), `${name} and its options`);
