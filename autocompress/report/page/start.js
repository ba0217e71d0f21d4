"use strict";
// Text, tables and a sketch of the front first. The library that draws takes longer to load than all
// of them together: it follows once they are on the screen, and draws a plot when that is scrolled to.

judge();
if (!front.length) state.scope = "all";  // an empty table tells nothing
update();
function loadPlots() {
  const library = document.getElementById("library");
  if (window.Plotly || !library) return;
  library.replaceWith(el("script", {}, library.textContent));
  if (!window.Plotly) return;  // this browser cannot load it: the sketch stays
  const watched = new IntersectionObserver(seen => {
    for (const {target, isIntersecting} of seen) if (isIntersecting) {
      watched.unobserve(target);
      inSight.add(target.id);
      drawPlot(target.id);
    }
  }, {rootMargin: "50%"});
  for (const id of Object.keys(plots)) if (id !== "pareto") watched.observe(document.getElementById(id));
  if (!stage || !plots.pareto) return;
  inSight.add("pareto");
  drawPlot("pareto");
  placeHandle();
  stage.on("plotly_selected", found => onPlot("selected", found));
  stage.on("plotly_deselect", () => { state.brushed = null; update(); });
  stage.on("plotly_click", found => onPlot("click", found));
  stage.on("plotly_relayout", placeHandle);
  stage.on("plotly_afterplot", placeHandle);
}
requestAnimationFrame(() => setTimeout(loadPlots));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { update(); drawAll(); });
window.matchMedia("(max-width: 600px)").addEventListener("change", () => { update(); drawAll(); });
function printing(now) {
  if (paper === now) return;
  loadPlots();
  paper = now;
  document.documentElement.classList.toggle("paper", now);
  update();
  drawAll();
}
window.matchMedia("print").addEventListener("change", e => printing(e.matches));
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));
