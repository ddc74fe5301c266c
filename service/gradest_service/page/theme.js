// The theme that was chosen here before, set ahead of the first paint.
try {
  const theme = localStorage.getItem("gradest-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // a browser that keeps nothing: the system's theme
}
