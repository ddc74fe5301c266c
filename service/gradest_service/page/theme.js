// Sets the theme that was chosen at an earlier visit, before the first paint.
try {
  const theme = localStorage.getItem("gradest-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // a browser that stores nothing: the system's theme
}
