"use strict";
// The run as data, what the trials are worth under a budget, and how numbers are written.

const run = JSON.parse(document.getElementById("data").textContent);
const quality = run.quality;
const trials = (run.trials.number ?? []).map((_, i) => {
  const trial = {};
  for (const name in run.trials) if (name !== "words") trial[name] = run.trials[name][i];
  for (const name of ["what", "origin", "reason"]) trial[name] = run.trials.words[trial[name]];
  return trial;
});
const byNumber = new Map(trials.map(t => [t.number, t]));
const measured = trials.filter(t => !t.rejected), rejected = trials.filter(t => t.rejected);
for (const trial of trials) trial.checks = [];
for (const check of run.checks)
  for (const number of check.trials) byNumber.get(number)?.checks.push(check.costs);
const referenceOf = new Map(Object.entries(run.references).map(([name, n]) => [n, name]));
const base = {number: null, quality: run.baseline.quality, error: run.baseline.error,
  images: run.baseline.images, what: "unchanged", origin: "uncompressed", checks: [],
  test: run.baseline.test, ...run.baseline.costs};
const costOf = Object.fromEntries(run.costs.map(c => [c.name, c]));

// what is chosen on the page; `draw` hooks are called when it changes
const state = {axis: run.costs[0]?.name, picked: null, other: null, brushed: null, scope: "front",
  limits: run.limits.map(l => ({...l})), rejected: false, sort: null};
const drawn = [];
function update(what = "all") { judge(); for (const draw of drawn) draw(what); }

// ---- elements: text goes in as text, so that no name can become markup
function el(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (value === true) found.setAttribute(name, "");
    else if (value !== false && value != null) found.setAttribute(name, value);
  }
  found.append(...children.filter(c => c !== null && c !== undefined && c !== ""));
  return found;
}
function fill(id, ...children) {
  const place = document.getElementById(id);
  if (!place) return;
  const known = place.contains(document.activeElement) ? labelOf(document.activeElement) : null;
  place.replaceChildren(...children.filter(c => c));
  // whoever works by keyboard stays on the button that was pressed
  if (known !== null) [...place.querySelectorAll("button")].find(b => labelOf(b) === known)?.focus({preventScroll: true});
}
const labelOf = button => (button.getAttribute("aria-label") ?? button.textContent).replace(/ [▲▼]$/, "");
const plain = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");  // for plotly's texts

// ---- numbers
const shown = value => quality.fraction ? 100 * value : value;
const digits = (value, count) => Number(value.toPrecision(count)).toString();
function costText(name, value) {
  if (value === null || value === undefined) return "-";
  if (name === "energy_mj") return `${digits(value, 3)} mJ`;
  if (name.endsWith("_ms")) return `${value < 100 ? digits(value, 3) : value.toFixed(0)} ms`;
  for (const [limit, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (value >= limit) return `${digits(value / limit, 3)} ${unit}${name.endsWith("bytes") ? "B" : ""}`;
  return `${digits(value, 3)}${name.endsWith("bytes") ? " B" : ""}`;
}
function qualityText(value, error = null) {
  if (value === null || value === undefined) return "-";
  const text = quality.fraction ? shown(value).toFixed(2) : digits(value, 4);
  return error ? `${text} ± ${quality.fraction ? shown(error).toFixed(2) : digits(error, 2)}` : text;
}
const unit = quality.fraction ? " %" : quality.unit ? ` ${quality.unit}` : "";
function gapText(points, error = null) {
  const sign = points >= 0 ? "+" : "-", form = x => quality.fraction ? x.toFixed(2) : digits(x, 3);
  const text = `${sign}${form(Math.abs(points))}${error === null ? "" : ` ± ${form(error)}`}`;
  return `${text} ${quality.fraction ? "points" : quality.unit}`.trim();
}

// ---- which is better, and whether that can be told
const loss = t => quality.goal === "maximize" ? -t.quality : t.quality;
function bits(trial) {
  const packed = trial === base ? run.baseline.hits : run.hits[trial.number];
  if (!packed) return null;
  trial.bits ??= Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  return trial.bits;
}
function count(bytes) {
  let found = 0;
  for (let byte of bytes) for (; byte; byte &= byte - 1) found += 1;
  return found;
}
// Quality of `a` less that of `b` as people read it, and its standard error: of the same samples one
// by one where both records tell them (matched pairs), else as if they were independent.
function difference(a, b) {
  const points = shown(1) * (a.quality - b.quality), mine = bits(a), theirs = bits(b);
  if (mine && theirs && a.images === b.images) {
    const n = a.images;
    const gain = count(mine.map((x, i) => x & ~theirs[i])), lost = count(mine.map((x, i) => ~x & theirs[i]));
    const variance = (gain + lost - (gain - lost) ** 2 / n) / n ** 2;
    return {points, stderr: shown(Math.sqrt(variance)), paired: true, gain, lost};
  }
  return {points, stderr: shown(Math.hypot(a.error || 0, b.error || 0)), paired: false};
}
const gainOf = d => quality.goal === "maximize" ? d.points : -d.points;
const level = (a, b) => {
  const found = difference(a, b);
  return Math.abs(found.points) <= run.clear * found.stderr;
};

// ---- the answer under a budget, by the rules of `autocompress.results.answer`
const over = (costs, limit) => !(costs[limit.metric] <= limit.bound * (1 + 1e-6));
const unknown = (t, limit) => t[limit.metric] === null || t[limit.metric] === undefined;  // earns no place
const allowed = t => !state.limits.some(l => unknown(t, l) || over(t, l) || t.checks.some(c => over(c, l)));
const excess = (t, limit) => unknown(t, limit) ? Infinity : Math.max(...[t, ...t.checks.filter(c => !unknown(c, limit))].map(c => c[limit.metric] / limit.bound - 1));
const farthest = t => Math.max(...state.limits.map(l => excess(t, l)));
const losses = t => [loss(t), ...run.objectives.map(o => o.goal === "maximize" ? -t[o.name] : t[o.name])];
function frontOf(candidates) {
  const sorted = candidates.map((t, i) => ({t, i, x: losses(t)}));
  sorted.sort((a, b) => a.x.reduceRight((found, x, k) => x - b.x[k] || found, 0) || a.i - b.i);
  const front = [];  // in this order nothing is beaten by what comes after it
  for (const one of sorted)
    if (!front.some(f => f.x.every((x, k) => x <= one.x[k]))) front.push(one);
  const by = Math.min(1, front[0]?.x.length - 1 || 0);
  front.sort((a, b) => a.x[by] - b.x[by] || a.t.number - b.t.number);
  return front.map(f => f.t);
}
let front = [], answer = null, nearest = null, keepsDrop = true, groups = new Map();
function judge() {
  for (const trial of measured) trial.feasible = allowed(trial);
  front = frontOf(measured.filter(t => t.feasible));
  const best = front.reduce((a, b) => !a || loss(b) < loss(a) ? b : a, null);
  const most = run.most_lost === null ? Infinity : run.most_lost * (1 + 1e-9) + 1e-4;
  const cheap = run.most_lost === null ? best : front.find(t => shown(loss(t) - loss(base)) <= most);
  keepsDrop = Boolean(cheap) || !front.length;
  answer = cheap || best;
  nearest = answer || !measured.length ? null : measured.reduce((a, b) => farthest(b) < farthest(a) ? b : a);
  groups = levelGroups(front);
}
// Members that cannot be told from the best of them. Noise is not transitive: each group has a leader.
function levelGroups(members) {
  const left = [...members].sort((a, b) => loss(a) - loss(b)), found = new Map();
  while (left.length) {
    const leader = left.shift(), group = [leader];
    for (const trial of [...left]) if (level(leader, trial)) {
      group.push(trial);
      left.splice(left.indexOf(trial), 1);
    }
    const told = {leader, members: group};
    for (const trial of group) found.set(trial.number, told);
  }
  return found;
}
const chosen = () => state.picked ?? answer;
const regarded = () => chosen() ?? nearest;  // what the page tells of where there is no answer
const nameOf = t => t === base ? "the uncompressed model" : `trial ${t.number}`;

// ---- copying
async function copy(button, text) {
  if (navigator.clipboard?.writeText) await navigator.clipboard.writeText(text);
  else {  // pages opened from a disk by older browsers
    const area = el("textarea", {style: "position:fixed;opacity:0"});
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "copied";
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}
function command(text, what) {
  return el("div", {class: "command"}, el("pre", {}, text),
    el("button", {type: "button", "aria-label": `copy: ${what}`, onclick: e => copy(e.currentTarget, text)}, "copy"));
}
for (const pre of document.querySelectorAll("pre.copied")) pre.replaceWith(command(pre.textContent, pre.title));
