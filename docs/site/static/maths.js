// Renders each formula of the page, whose text is TeX, by KaTeX, which lies beside this file.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".math")) {
    katex.render(place.textContent, place, { displayMode: place.tagName === "DIV", throwOnError: false });
  }
});
