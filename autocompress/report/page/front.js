"use strict";
// The trade-off with its budget, which can be moved, and the answer that follows it.

const MARKS = ["diamond", "square", "triangle-up", "pentagon", "hexagon", "star-triangle-up"];
const plots = {};  // id -> () => {data, layout}
const inSight = new Set();  // ids of plots that were scrolled to
let paper = false;  // while printing

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = name => style.getPropertyValue(name).trim();
  return {ink: read("--ink"), line: read("--line"), soft: read("--soft"), card: read("--card"),
    page: read("--page")};
}
function colors() {  // of Okabe and Ito: told apart with any colour vision; lighter ones on dark pages
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["blue", "orange", "green", "red", "grey"].map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
}
function narrow() { return !paper && window.innerWidth < 600; }
function drawPlot(id, options = {}) {
  const place = document.getElementById(id);
  if (!place || !plots[id] || !window.Plotly || !(paper || inSight.has(id))) return;
  const {ink, line, soft} = theme(), {data, layout} = plots[id]();
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: soft, tickcolor: soft, automargin: true};
  for (const key of Object.keys(layout).filter(k => /^[xy]axis/.test(k))) layout[key] = {...axis, ...layout[key]};
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: !paper,
    width: paper ? 680 : undefined, hoverlabel: {align: "left"}, uirevision: layout.uirevision ?? id,
    font: {color: ink, family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13},
    margin: {l: 50, r: 12, t: 26, b: 44, ...layout.margin},
    legend: {orientation: "h", y: -0.22, ...layout.legend},
  });
  place.querySelector(".sketch")?.remove();
  Plotly.react(place, data, layout, {responsive: true, displaylogo: false, displayModeBar: false, ...options});
}
function drawAll() { for (const id of Object.keys(plots)) drawPlot(id); placeHandle(); }

// ---- the trade-off
function hover(t) {
  const lines = [`<b>trial ${t.number}</b> (${plain(t.origin)})`];
  if (t.quality !== null) lines.push(`${plain(quality.name)}: ${qualityText(t.quality, t.error)}${plain(unit)}`);
  for (const c of run.costs.slice(0, 4)) if (t[c.name] != null) lines.push(`${plain(c.title.split(",")[0])}: ${costText(c.name, t[c.name])}`);
  lines.push(t.rejected ? plain(t.reason) : plain(t.what));
  return lines.join("<br>");
}
function points(name, found, marker, more = {}) {
  return {type: "scatter", mode: "markers", name: plain(name), x: found.map(t => t[state.axis]),
    y: found.map(t => shown(t.quality)), customdata: found.map(t => t.number), marker: {size: 8, ...marker},
    text: found.map(hover), hovertemplate: "%{text}<extra></extra>",
    // what is not brushed fades; a brush that caught nothing fades nothing
    selectedpoints: state.brushed ? found.flatMap((t, i) => state.brushed.has(t.number) ? [i] : []) : undefined,
    unselected: {marker: {opacity: 0.15}}, ...more};
}
const Z = 1.96;
function spread(t) {  // half widths of the 95 % intervals: [low and high of the cost], quality
  const wide = state.axis === "latency_ms" ? t.interval : null;
  return {x: wide, y: Z * shown(t.error || 0)};
}
// The smaller interval of the two must be wide enough to be seen; bars stand for both otherwise.
const FLAT = 0.012;
function round(t) {
  const {x, y} = spread(t), [low, high] = costRange();
  return Boolean(x && y) && x[1] - x[0] > FLAT * (high - low) && 2 * y > FLAT * (qualities[1] - qualities[0]);
}
function ellipse(t, color) {
  const {x, y} = spread(t);
  if (!round(t)) return null;
  return {type: "circle", x0: x[0], x1: x[1], y0: shown(t.quality) - y, y1: shown(t.quality) + y, layer: "below",
    line: {width: 1, color}, fillcolor: color, opacity: 0.22};
}
function bars(found) {
  const flat = found.map(t => round(t) ? {x: null, y: 0} : spread(t)), bar = {type: "data", thickness: 1.2, width: 3};
  const sides = flat.map((f, i) => f.x ? [found[i][state.axis] - f.x[0], f.x[1] - found[i][state.axis]].map(x => Math.max(0, x)) : [0, 0]);
  return {
    ...(flat.some(f => f.y) ? {error_y: {...bar, array: flat.map(f => f.y)}} : {}),
    ...(flat.some(f => f.x) ? {error_x: {...bar, symmetric: false, arrayminus: sides.map(s => s[0]), array: sides.map(s => s[1])}} : {}),
  };
}
// the intervals of what matters are in sight, whatever the budget is moved to
const known = [byNumber.get(run.best), ...[...referenceOf.keys()].map(n => byNumber.get(n))].filter(t => t && t.quality !== null);
const qualities = [Math.min(run.range[0], ...known.map(t => shown(t.quality) - spread(t).y)),
  Math.max(run.range[1], ...known.map(t => shown(t.quality) + spread(t).y))];
function limitOn(axis) {
  const found = state.limits.filter(l => l.metric === axis).map(l => l.bound);
  return found.length ? Math.min(...found) : Infinity;
}
function costRange() {  // a far costlier uncompressed model would press all others together
  const costs = measured.map(t => t[state.axis]).filter(x => x != null), whole = base[state.axis];
  const bounds = run.limits.filter(l => l.metric === state.axis).map(l => l.bound), found = [...costs, ...bounds];
  if (state.whole || !costs.length || whole < Math.max(...found) + 0.5 * (Math.max(...found) - Math.min(...found))) found.push(whole);
  const low = Math.min(...found), high = Math.max(...found), pad = 0.06 * (high - low || high || 1);
  return [low - pad, high + pad];
}
// How far a text at the right edge, at the uncompressed quality, moves up or down to hide no trial: pixels.
function clearance(text, [low, high]) {
  const inside = 350, line = 18, free = 11, up = inside / (qualities[1] - qualities[0]), from = shown(base.quality);
  const left = high - (high - low) * Math.min(1, 8 * text.length / ((stage?.clientWidth || 700) - 60));
  const taken = measured.filter(t => t[state.axis] >= left).map(t => up * (shown(t.quality) - from));
  const tries = Array.from({length: 60}, (_, i) => (i % 2 ? 3 : -3) * (i + i % 2)).sort((a, b) => Math.abs(a) - Math.abs(b));
  const fits = y => y > up * (qualities[0] - from) && y + line < up * (qualities[1] - from) && !taken.some(at => at > y - free && at < y + line + free);
  return tries.find(fits) ?? 0;
}
plots.pareto = () => {
  const axis = state.axis, special = new Set(front.map(t => t.number)), data = [], range = costRange();
  const others = measured.filter(t => !special.has(t.number) && !referenceOf.has(t.number));
  const out = others.filter(t => !t.feasible), inside = others.filter(t => t.feasible);
  if (out.length) data.push(points("over the budget", out, {color: colors().grey, symbol: "x-thin-open", opacity: 0.7}));
  if (inside.length) data.push(points("within the budget", inside, {color: colors().blue, symbol: "circle-open", opacity: 0.7}));
  if (state.rejected && rejected.length) {
    const placed = rejected.filter(t => t[axis] != null);
    data.push({...points("rejected on its estimate", placed, {color: colors().red, symbol: "line-ns-open", size: 12}),
      y: placed.map(() => qualities[0])});
  }
  if (front.length) data.push(points("front", front, {color: colors().blue, size: 10},
    {mode: "lines+markers", line: {shape: "hv", width: 1.5, color: colors().blue}, ...bars(front)}));
  [...referenceOf].forEach(([number, name], i) => {
    const trial = byNumber.get(number);
    if (trial) data.push(points(name, [trial], {color: colors().orange, symbol: MARKS[i % MARKS.length], size: 12,
      line: {width: 1, color: theme().ink}}, bars([trial])));
  });
  if (base[axis] <= range[1]) data.push({...points("uncompressed", [base], {color: colors().red, symbol: "circle-open", size: 14, line: {width: 3}}),
    hovertemplate: "uncompressed<extra></extra>"});
  const same = answer ? (groups.get(answer.number)?.members ?? []).filter(t => t !== answer) : [];
  if (same.length) data.push(points("level with the answer", same, {color: colors().green, symbol: "circle-open", size: 17, line: {width: 2}}));
  if (answer) data.push(points(`answer: trial ${answer.number}`, [answer], {color: colors().green, symbol: "star", size: 18, line: {width: 1.5, color: theme().card}}));
  else if (nearest) data.push(points(`nearest: trial ${nearest.number}`, [nearest], {color: colors().red, symbol: "star", size: 17}));
  if (state.picked) data.push(points(`picked: trial ${state.picked.number}`, [state.picked], {color: theme().ink, symbol: "square-open", size: 20, line: {width: 2}}));
  const shapes = [...front.map(t => ellipse(t, colors().blue)), ...[...referenceOf.keys()].map(n => byNumber.get(n)).filter(Boolean).map(t => ellipse(t, colors().orange))].filter(Boolean);
  const bound = limitOn(axis);
  if (bound < range[1]) shapes.push({type: "rect", x0: Math.max(bound, range[0]), x1: range[1], y0: 0, y1: 1, yref: "paper", layer: "below",
    line: {width: 0}, fillcolor: colors().red, opacity: 0.06});
  const beyond = `uncompressed: ${costText(axis, base[axis])} →`;
  const away = base[axis] > range[1] ? [{text: beyond, yshift: clearance(beyond, range), x: 1, xref: "paper", xanchor: "right",
    y: shown(base.quality), showarrow: false, yanchor: "bottom", font: {color: colors().red}, bgcolor: theme().card}] : [];
  const tickformat = costOf[axis]?.name === "latency_ms" ? "" : "~s";
  return {data, layout: {
    height: 500, shapes, annotations: away, hovermode: "closest", uirevision: `${axis} ${state.whole}`,
    selections: state.brushed ? stage.layout?.selections : [],  // what a drawing leaves out, Plotly 6 takes for given up clickmode: "event",
    dragmode: narrow() ? false : "select", selectdirection: "any", newselection: {line: {color: theme().ink}},
    xaxis: {title: {text: costOf[axis]?.title}, range, tickformat}, legend: narrow() ? {x: -0.18, y: -0.3, entrywidth: 118} : {y: -0.17},
    yaxis: {title: {text: `${plain(quality.name)} on val${plain(quality.fraction ? ", %" : quality.unit ? `, ${quality.unit}` : "")}`}, ...(state.whole ? {autorange: true} : {range: qualities})},
  }};
};

// ---- the budget's handle lies over the plot: a slider for mouse, finger and keyboard
const handle = document.getElementById("handle"), stage = document.getElementById("pareto");
function placeHandle() {
  const full = stage?._fullLayout;
  if (!handle || !full?.xaxis) return;
  const [low, high] = full.xaxis.range, bound = limitOn(state.axis);
  const at = full.xaxis.d2p(Math.min(high, Math.max(low, bound)));
  handle.hidden = false;
  handle.style.left = `${full.xaxis._offset + at}px`;
  handle.style.top = `${full.yaxis._offset}px`;
  handle.style.height = `${full.yaxis._length}px`;
  const text = bound < Infinity ? `budget ${costText(state.axis, bound)}` : "no limit";
  handle.firstElementChild.textContent = text;
  handle.classList.toggle("left", at > 0.6 * full.xaxis._length);
  const said = answer ? `${text}, ${nameOf(answer)}, ${qualityText(answer.quality)}${unit}` : `${text}, no trial`;
  for (const [name, value] of [["valuemin", low], ["valuemax", high], ["valuenow", Math.min(high, bound)], ["valuetext", said]])
    handle.setAttribute(`aria-${name}`, value);
}
let waiting = false;
function setLimit(bound) {
  state.limits = state.limits.filter(l => l.metric !== state.axis);
  if (bound < Infinity) state.limits.push({metric: state.axis, bound});
  state.picked = null;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; update("budget"); });
}
function moveTo(clientX) {
  const axis = stage._fullLayout.xaxis, [low, high] = axis.range;
  const value = axis.p2d(clientX - stage.getBoundingClientRect().left - axis._offset);
  setLimit(value >= high ? Infinity : Math.max(value, low + 1e-9 * (high - low), 0));
}
if (handle) {
  handle.addEventListener("pointerdown", e => { handle.setPointerCapture(e.pointerId); handle.focus({preventScroll: true}); e.preventDefault(); });
  handle.addEventListener("pointermove", e => { if (handle.hasPointerCapture(e.pointerId)) moveTo(e.clientX); });
  handle.addEventListener("keydown", e => {
    const [low, high] = stage._fullLayout.xaxis.range, now = Math.min(high, limitOn(state.axis)), step = (high - low) / 100;
    const steps = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10}[e.key];
    if (steps) setLimit(now + steps * step >= high ? Infinity : Math.max(now + steps * step, low + step / 10));
    else if (e.key === "Home") setLimit(low + step);
    else if (e.key === "End") setLimit(Infinity);
    else return;
    e.preventDefault();
  });
}

// ---- the answer in words
function factor(t, name, than = base) {
  const ratio = t[name] / than[name];
  return Number.isFinite(ratio) ? `${ratio.toFixed(2)} times its ${costOf[name].title.split(",")[0]}` : "";
}
function against(t, other) {
  const d = difference(t, other), told = gapText(d.points, d.stderr);
  return `${told} of ${quality.name}${Math.abs(d.points) <= run.clear * d.stderr ? " (within noise)" : ""}`;
}
function givenUp(t) {
  const found = [], axis = state.axis, cheaper = (groups.get(t.number)?.members ?? []).filter(o => o[axis] < t[axis]);
  found.push(`Against the uncompressed model: ${against(t, base)}; ${run.costs.filter(c => c.listed).map(c => factor(t, c.name)).filter(Boolean).join(", ")}.`);
  const best = measured.reduce((a, b) => loss(b) < loss(a) ? b : a, t);
  if (best !== t) found.push(`Given up against the best that was measured at any cost, ${nameOf(best)} at ${costText(axis, best[axis])}: ${against(t, best)}.`);
  const next = front.length ? measured.filter(o => loss(o) < loss(t) && o[axis] > t[axis]).sort((a, b) => a[axis] - b[axis])[0] : null;
  if (next && next !== best) found.push(`The next better one, ${nameOf(next)}, costs ${costText(axis, next[axis])}: ${against(next, t)}.`);
  const original = byNumber.get(run.best);
  if (original && original !== t && original !== best) found.push(`Against the study's answer, ${nameOf(original)}: ${against(t, original)}.`);
  if (cheaper.length) {
    const least = cheaper.reduce((a, b) => b[axis] < a[axis] ? b : a);
    found.push(`Level with it and cheaper: ${nameOf(least)} at ${costText(axis, least[axis])}: ${against(least, t)}.`);
  }
  return found;
}
function missed(t) {
  const off = state.limits.map(l => [l, excess(t, l)]).filter(([, by]) => by > 1e-6).map(([l, by]) =>
    `${saidOf(l.metric)} ${costText(l.metric, t[l.metric])}${Number.isFinite(by) ? `, ${by < 1 ? `${(100 * by).toFixed(1)} % over` : `${digits(1 + by, 3)} times`} its limit` : ", which was not measured"}`);
  return `The nearest is ${nameOf(t)}: ${off.join("; ")}. Loosen the budget, widen the search space, or search longer with --resume.`;
}
const saidOf = name => (costOf[name]?.title ?? name).split(",")[0];
function moved() { return JSON.stringify(state.limits.map(l => [l.metric, l.bound]).sort()) !== JSON.stringify(run.limits.map(l => [l.metric, l.bound]).sort()); }
function commands(t) {
  return [["export", `autocompress export ${run.run} --pick ${t.number} ${run.there ? run.there + " " : ""}-o recipe.yaml`],
    ["apply", "autocompress apply recipe.yaml -o model.onnx"], ["verify", "autocompress verify recipe.yaml"]];
}
drawn.push(what => {
  drawPlot("pareto");
  placeHandle();
  const t = chosen(), budget = state.limits.map(l => `${saidOf(l.metric)} ≤ ${costText(l.metric, l.bound)}`).join(", ") || "no limit";
  const parts = [el("p", {class: "soft"}, `Budget: ${budget}. `, moved() ? el("button", {type: "button", onclick: () => { state.limits = run.limits.map(l => ({...l})); state.picked = null; update(); }}, "the study's budget") : "")];
  if (!t) parts.push(el("p", {class: "headline no"}, "Nothing that was measured meets this budget."), ...(nearest ? [el("p", {}, missed(nearest))] : []));
  else {
    parts.push(el("p", {class: "headline"}, `${state.picked ? "Picked" : "Answer"}: trial ${t.number}, ${quality.name} ${qualityText(t.quality, t.error)}${unit}` +
      run.costs.slice(0, 1).map(c => `, ${costText(c.name, t[c.name])}`).join("")));
    if (state.picked && !t.feasible) parts.push(el("p", {class: "no"}, "It is over the budget."));
    if (!state.picked && !keepsDrop) parts.push(el("p", {class: "no"}, "It is within the budget, but loses more than the study allows."));
    parts.push(el("p", {class: "soft"}, t.what), el("ul", {}, ...givenUp(t).map(text => el("li", {}, text))));
    parts.push(...commands(t).map(([what, text]) => command(text, what)));
    if (moved()) parts.push(el("p", {class: "soft"}, "The same trials are judged by another budget; a study that searches under it may find better ones."));
  }
  fill("answer", ...parts);
});
