"use strict";
// How the study went.

const course = run.course;
const axisTitle = text => ({title: {text: plain(text), standoff: 8}});
const qualityAxis = `${quality.name}${quality.fraction ? ", %" : quality.unit ? `, ${quality.unit}` : ""}`;
if (document.getElementById("growth")) plots.growth = () => {
  const {time, hypervolume, best, trial, unit} = course.growth;
  return {
    data: [
      {type: "scatter", x: time, y: hypervolume, name: "hypervolume", mode: "lines", text: trial.map(n => `after trial ${n}`),
        line: {shape: "hv", color: colors().blue, width: 2.5}},
      {type: "scatter", x: time, y: best, name: `best ${plain(qualityAxis)} within the budget`, mode: "lines", yaxis: "y2",
        line: {shape: "hv", color: colors().green, width: 2, dash: "dot"}},
    ],
    layout: {height: 340, dragmode: false, margin: {r: 50}, xaxis: axisTitle(unit), yaxis: {...axisTitle("hypervolume"), rangemode: "tozero"},
      yaxis2: {...axisTitle(qualityAxis), overlaying: "y", side: "right", showgrid: false, tickmode: "auto", nticks: 5}},
  };
};
// ---- tables with bars
function barred(value, most, text) {
  return el("td", {class: "barred"}, el("span", {}, text), el("span", {class: "bar"}, el("i", {style: `width: ${most ? 100 * value / most : 0}%`})));
}
const minutes = s => s == null ? "-" : s < 90 ? `${digits(s, 2)} s` : s < 5400 ? `${(s / 60).toFixed(0)} min` : `${(s / 3600).toFixed(1)} h`;
const heading = (...names) => el("tr", {}, ...names.map((name, i) => el("th", {class: i ? "" : "text"}, name)));
const mostOf = (rows, key) => Math.max(...rows.map(r => r[key] || 0), 0);
const added = course.origins.reduce((sum, o) => sum + o.hypervolume, 0);
fill("origins", heading("origin", "trials", "on the front", "added", "time", "added per hour"), ...course.origins.map(o => {
  const rate = o.seconds ? o.hypervolume / (o.seconds / 3600) : null;
  return el("tr", {}, el("td", {class: "text"}, o.name), el("td", {}, String(o.trials)), el("td", {}, String(o.front)),
    barred(o.hypervolume, mostOf(course.origins, "hypervolume"), added ? `${(100 * o.hypervolume / added).toFixed(1)} %` : "-"), el("td", {}, minutes(o.seconds)),
    el("td", {}, rate === null ? "-" : digits(rate, 2)));
}));
const phases = ["search", "recover", "verify", "cascade"].filter(p => course.spent.some(row => row[p]));
fill("spent", heading("evaluations", ...phases, "together"), ...course.spent.map(row => el("tr", {}, el("td", {class: "text"}, row.name),
  ...phases.map(p => el("td", {}, row[p] ? minutes(row[p]) : "-")), barred(row.total, mostOf(course.spent, "total"), minutes(row.total)))));

// ---- what was expected, and what came
function diagonal(values) {
  const ends = [Math.min(...values), Math.max(...values)];
  return {type: "scatter", mode: "lines", x: ends, y: ends, name: "as expected", line: {color: theme().soft, dash: "dot", width: 1.5}, hoverinfo: "skip"};
}
if (document.getElementById("expected")) {
  const rows = course.expected;
  plots.expected = () => ({
    data: [diagonal(rows.flatMap(r => [r[1], r[2]])), {type: "scatter", mode: "markers", name: "trial, with the 95 % interval of the estimate", x: rows.map(r => r[2]), y: rows.map(r => r[1]),
      text: rows.map(r => `trial ${r[0]}`), marker: {color: colors().blue, size: 7}, error_y: {type: "data", array: rows.map(r => Z * r[3]), thickness: 1, width: 0}}],
    layout: {height: 380, dragmode: false, xaxis: axisTitle("measured latency, ms"), yaxis: axisTitle("expected latency, ms")},
  });
  const inside = rows.filter(r => Math.abs(r[1] - r[2]) <= Z * r[3]).length;
  const off = rows.map(r => Math.abs(r[1] / r[2] - 1)).sort((a, b) => a - b)[Math.floor(rows.length / 2)];
  fill("coverage", document.createTextNode(`The latency expected before measuring is off by ${(100 * off).toFixed(1)} % at the median of ${rows.length} trials; ` +
    `the 95 % interval holds ${inside} of them (${(100 * inside / rows.length).toFixed(0)} %).`));
}
if (document.getElementById("recovered")) plots.recovered = () => {
  const found = measured.filter(t => t.phase === "r" && byNumber.get(t.parent)?.quality != null);
  const before = t => shown(byNumber.get(t.parent).quality);
  const trace = (name, distilled, color, symbol, size) => {
    const some = found.filter(t => Boolean(t.distilled) === distilled);
    return some.length ? [{type: "scatter", mode: "markers", name, x: some.map(before), y: some.map(t => shown(t.quality)), text: some.map(hover),
      hovertemplate: "%{text}<extra></extra>", marker: {color, symbol, size, line: {width: 2, color}}}] : [];
  };
  return {
    data: [{...diagonal(found.flatMap(t => [before(t), shown(t.quality)])), name: "no change"},
      ...trace("trained", false, colors().blue, "circle", 8), ...trace("trained with a teacher", true, colors().orange, "diamond-open", 14)],
    layout: {height: 360, dragmode: false, xaxis: axisTitle(`${qualityAxis} before training`), yaxis: axisTitle("after")},
  };
};
