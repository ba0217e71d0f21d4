"use strict";
// The trials as a table: the front, everything measured or what was brushed; sorted by any column.

const SHOWN = 100;  // rows at first
let rowsShown = SHOWN;
const tested = measured.some(t => t.test !== null);
const columns = [
  {key: "number", title: "trial", value: t => t.number},
  {key: "mark", title: "", text: true, value: t => markOf(t)},
  {key: "quality", title: `${quality.name}, val${unit}`, value: t => t.quality, show: t => qualityText(t.quality, t.error)},
  ...(tested ? [{key: "test", title: `test${unit}`, value: t => t.test, show: t => qualityText(t.test)}] : []),
  ...run.costs.filter(c => c.listed).flatMap(c => [
    {key: c.name, title: c.short, value: t => t[c.name], show: t => costText(c.name, t[c.name])},
    ...(c.name === "latency_ms" ? [{key: "ratio", title: "of base", value: t => t[c.name] / base[c.name],
      show: t => t[c.name] == null ? "-" : (t[c.name] / base[c.name]).toFixed(2)}] : [])]),
  {key: "feasible", title: "in budget", value: t => t.rejected ? "rejected" : t.feasible ? "yes" : "no"},
  {key: "what", title: "what was done", text: true, wrap: true, value: t => t.rejected ? t.reason : t.what},
  {key: "origin", title: "origin", text: true, value: t => t.origin},
];
function markOf(t) {
  const marks = [];
  if (t === answer) marks.push("answer");
  else if (t === nearest) marks.push("nearest");
  else if (answer && groups.get(t.number) && groups.get(t.number) === groups.get(answer.number)) marks.push("level");
  if (referenceOf.has(t.number)) marks.push(referenceOf.get(t.number));
  return marks.join(", ");
}
function listed() {
  const found = {front, all: measured, rejected}[state.scope];
  return state.brushed ? [...measured, ...(state.rejected ? rejected : [])].filter(t => state.brushed.has(t.number)) : found;
}
function sorted(found) {
  if (!state.sort) return found;
  const {key, down} = state.sort, by = columns.find(c => c.key === key).value;
  const order = (a, b) => a == null ? 1 : b == null ? -1 : a < b ? -1 : a > b ? 1 : 0;
  return [...found].sort((a, b) => down ? order(by(b), by(a)) : order(by(a), by(b)));
}
function sortBy(key) {
  state.sort = state.sort?.key === key ? (state.sort.down ? null : {key, down: true}) : {key, down: false};
  update("table");
}
function header(shownColumns, current, sort) {
  return el("tr", {}, ...shownColumns.map(c => el("th", {scope: "col", class: c.text ? "text" : "",
    "aria-sort": current?.key === c.key ? (current.down ? "descending" : "ascending") : "none"},
    c.title ? el("button", {type: "button", class: "sort", onclick: () => sort(c.key)}, c.title,
      current?.key === c.key ? (current.down ? " ▼" : " ▲") : "") : "")));
}
function row(t) {
  const classes = [t === answer ? "chosen" : "", t === state.picked ? "picked" : ""].join(" ").trim();
  return el("tr", {class: classes, "data-trial": t.number}, ...columns.map(c => {
    const text = (c.show ?? c.value)(t);
    if (c.key === "number") return el("td", {}, t.rejected ? String(text) : el("button", {type: "button", class: "pick", "aria-pressed": t === chosen() ? "true" : "false",
      "aria-label": `pick trial ${t.number}`, onclick: () => pick(t)}, String(text)));
    return el("td", {class: [c.text ? "text" : "", c.wrap ? "wrap" : "", text === "no" ? "no" : ""].join(" ").trim()}, String(text ?? "-"));
  }));
}
function pick(t) {
  state.picked = t === answer || t === state.picked ? null : t;
  update();
}
function groupsTold() {
  const seen = [...new Set(groups.values())].filter(g => g.members.length > 1);
  return seen.map(g => {
    const others = g.members.filter(t => t !== g.leader).map(t => t.number), one = others.length === 1;
    return `Level: ${one ? "trial" : "trials"} ${others.join(", ")} ${one ? "differs" : "differ"} from trial ${g.leader.number} by less than two standard errors.`;
  });
}
drawn.push(() => {
  const found = listed(), rows = sorted(found), cut = paper ? rows : rows.slice(0, rowsShown);
  const buttons = [["front", `front (${front.length})`], ["all", `all measured (${measured.length})`], ["rejected", `rejected (${rejected.length})`]]
    .filter(([scope]) => scope !== "rejected" || rejected.length)
    .map(([scope, text]) => el("button", {type: "button", "aria-pressed": String(!state.brushed && state.scope === scope),
      onclick: () => { Object.assign(state, {scope, brushed: null}); rowsShown = SHOWN; update(); }}, text));
  fill("scopes", ...buttons, state.brushed ? el("button", {type: "button", "aria-pressed": "true",
    onclick: () => { state.brushed = null; update(); }}, `brushed (${found.length}) ✕`) : "");
  fill("trials", header(columns, state.sort, sortBy), ...cut.map(row));
  fill("more", cut.length < rows.length ? el("button", {type: "button", onclick: () => { rowsShown += 10 * SHOWN; update("table"); }},
    `show more (${rows.length - cut.length} are not shown)`)
    : state.scope === "front" && !rows.length && measured.length ? el("p", {class: "soft"}, "No trial is within the budget. All that was measured can be shown instead.") : "");
  fill("levels", ...(state.scope === "front" && !state.brushed ? groupsTold().map(text => el("p", {class: "soft"}, text)) : []));
});

// ---- what is brushed in the plot
function onPlot(event, found) {
  const numbers = found?.points?.map(p => p.customdata).filter(n => n != null) ?? [];
  if (event === "selected") {
    if (!found) return;
    state.brushed = numbers.length ? new Set(numbers) : null;
    rowsShown = SHOWN;
    update();
  } else if (event === "click" && byNumber.has(numbers[0]) && !byNumber.get(numbers[0]).rejected) pick(byNumber.get(numbers[0]));
}

// ---- controls over the plot
const axisChoice = document.getElementById("axis");
if (axisChoice) {
  axisChoice.replaceChildren(...run.costs.map(c => el("option", {value: c.name}, c.title)));
  axisChoice.addEventListener("change", () => { Object.assign(state, {axis: axisChoice.value, brushed: null}); update(); });
  document.getElementById("whole").addEventListener("change", e => { state.whole = e.target.checked; update(); });
  document.getElementById("showrejected").addEventListener("change", e => { state.rejected = e.target.checked; update(); });
}
