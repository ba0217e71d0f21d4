"use strict";
// Everything is drawn once, and again where colours or widths change.

update();
drawAll();
if (stage && plots.pareto) {
  stage.on("plotly_selected", found => onPlot("selected", found));
  stage.on("plotly_deselect", () => { state.brushed = null; update(); });
  stage.on("plotly_click", found => onPlot("click", found));
  stage.on("plotly_relayout", placeHandle);
  stage.on("plotly_afterplot", placeHandle);
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update());
window.matchMedia("(max-width: 600px)").addEventListener("change", () => { update(); drawAll(); });
function printing(now) {
  if (paper === now) return;
  paper = now;
  document.documentElement.classList.toggle("paper", now);
  update();
  drawAll();
}
window.matchMedia("print").addEventListener("change", e => printing(e.matches));
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));
