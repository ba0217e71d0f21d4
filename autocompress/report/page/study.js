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
        line: {shape: "hv", color: BLUE, width: 2.5}},
      {type: "scatter", x: time, y: best, name: `best ${plain(qualityAxis)} within the budget`, mode: "lines", yaxis: "y2",
        line: {shape: "hv", color: GREEN, width: 2, dash: "dot"}},
    ],
    layout: {height: 340, dragmode: false, margin: {r: 50}, xaxis: axisTitle(unit), yaxis: {...axisTitle("hypervolume"), rangemode: "tozero"},
      yaxis2: {...axisTitle(qualityAxis), overlaying: "y", side: "right", showgrid: false, ...(quality.fraction ? {tickformat: ".2f"} : {})}},
  };
};
if (document.getElementById("origins")) plots.origins = () => {
  const found = [...course.origins].reverse(), names = found.map(o => plain(o.name));
  const bar = (name, key, color, pattern) => ({type: "bar", orientation: "h", name, y: names, x: found.map(o => o[key]), cliponaxis: false,
    text: found.map(o => o[key]), textposition: "outside", marker: {color, pattern: {shape: pattern, fgcolor: theme().card, size: 6}}});
  return {
    data: [bar("trials", "trials", GREY, "/"), bar("on the front", "front", BLUE, "")],
    layout: {barmode: "group", height: 110 + 42 * found.length, dragmode: false, margin: {r: 36, t: 10},
      xaxis: {}, legend: {y: -0.16, traceorder: "reversed"}},
  };
};
