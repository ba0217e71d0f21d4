"use strict";
// Layers beside trials: a heat map of the front, and the layers in which two trials differ.

const MOST_COLUMNS = 24;
const facts = run.facts ?? {};
const heat = {technique: run.techniques[0], sort: null};
const policyOf = t => t === base ? run.layers.map(() => null) : run.policies[t.number] ?? null;
const cellOf = (number, technique) => number === null ? ["", 1] : run.cells[number][run.techniques.indexOf(technique)];
const brief = text => text.replace(/(\d+) of (\d+) channels/, "$1/$2").replace(/ of the (channels|rank)| bits| zeros/g, "");
function painted(text, share) {
  const deep = text ? Math.round(100 * (0.12 + 0.88 * (1 - (share ?? 0.5)))) : 0;
  return el("td", {class: "heat", style: `--deep: ${deep}%`, title: text || "unchanged"}, brief(text) || "·");
}
function heatTrials() {
  const found = front.filter(policyOf), now = regarded();
  const step = Math.ceil(found.length / MOST_COLUMNS);
  const kept = found.filter((t, i) => i % step === 0 || t === now || t === answer);
  return now && !kept.includes(now) && policyOf(now) ? [...kept, now] : kept;
}
function mates(name) {  // of the first layer of those that share their channels: the others
  const others = run.layers.filter(other => other !== name && facts[other]?.group === name);
  return others.length ? `${others[0]}${others.length > 1 ? ` +${others.length - 1}` : ""}` : name;
}
const factColumns = [["ms", "time", v => costText("latency_ms", v)], ["macs", "MACs", v => costText("macs", v)],
  ["sensitivity", "sensitivity", v => digits(v, 2)], ["alone", "with", v => brief(v)], ["group", "coupled with", (v, name) => v === name ? mates(name) : v]]
  .filter(([key]) => run.layers.some(name => facts[name]?.[key] != null));
drawn.push(what => {
  if (!document.getElementById("heat") || what === "table") return;
  const found = heatTrials();
  const fact = (i, key) => facts[run.layers[i]]?.[key] ?? null;
  const known = factColumns.map(([key, title, show]) => ({key, title, value: i => fact(i, key), draw: i => el("td",
    {class: ["group", "alone"].includes(key) ? "cut" : "", title: fact(i, key)}, fact(i, key) === null ? "-" : show(fact(i, key), run.layers[i]))}));
  const map = found.map(t => ({key: t.number, title: `${t === answer ? "★ " : ""}${t.number}`, trial: t,
    value: i => cellOf(policyOf(t)[i], heat.technique)[1], draw: i => painted(...cellOf(policyOf(t)[i], heat.technique))}));
  const heads = [{key: "layer", title: "layer", text: true, value: i => i, draw: i => el("td", {class: "text name"}, run.layers[i])},
    ...(narrow() ? [...map, ...known] : [...known, ...map])];
  const order = run.layers.map((_, i) => i);
  if (heat.sort) {
    const by = heads.find(h => h.key === heat.sort.key)?.value ?? (i => i);
    order.sort((a, b) => (heat.sort.down ? -1 : 1) * (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0));
  }
  const choose = run.techniques.map(name => el("button", {type: "button", "aria-pressed": String(name === heat.technique),
    onclick: () => { heat.technique = name; update("heat"); }}, name));
  fill("techniques", ...(choose.length > 1 ? choose : []));
  fill("heat",
    header(heads, heat.sort, key => { heat.sort = heat.sort?.key === key && heat.sort.down ? null : {key, down: heat.sort?.key === key}; update("heat"); }),
    el("tr", {class: "sub"}, ...heads.map(({key, trial: t}) => key === "layer" ? el("td", {class: "text"}, `${quality.name}, ${costOf[state.axis].short}`)
      : t ? el("td", {}, qualityText(t.quality), el("br"), costText(state.axis, t[state.axis])) : el("td", {}))),
    ...order.map(i => el("tr", {}, ...heads.map(head => head.draw(i)))));
  const missing = front.length - found.filter(t => front.includes(t)).length;
  fill("heatnote", missing > 0 ? el("span", {}, `${missing} more members of the front are not shown. `) : "");
});

// ---- two trials
const pair = {};
const sides = ["first", "second"].map(id => document.getElementById(id));
function pairOptions() {
  const known = [base, ...measured.filter(policyOf)], front_ = new Set(front);
  const told = t => t === base ? "uncompressed" : `trial ${t.number}${t === answer ? " (answer)" : front_.has(t) ? " (front)" : ""}`;
  const order = [base, ...front.filter(policyOf), ...known.filter(t => t !== base && !front_.has(t))];
  return order.map(t => el("option", {value: String(t.number)}, told(t)));
}
function besides(t) {  // the next cheaper member of the front
  const known = front.filter(policyOf), at = known.indexOf(t);
  return known[at - 1] ?? known[at + 1] ?? base;
}
// What a layer's change costs by itself, in ms and nats: estimates, of which nothing is known for some trials.
function costAlone(t, name) {
  if (t === base) return [0, 0];
  const at = run.alone?.trials[t.number]?.[run.alone.layers.indexOf(name)];
  return at === undefined ? null : run.alone.table[at];
}
function gapAlone(a, b, name) {
  const [mine, theirs] = [costAlone(a, name), costAlone(b, name)];
  return mine && theirs ? mine.map((x, k) => x === null || theirs[k] === null ? null : x - theirs[k]) : [null, null];
}
const signed = (value, unit) => value === null ? "-" : value === 0 ? "·" : `${value > 0 ? "+" : "-"}${digits(Math.abs(value), 2)}${unit}`;
const trialOf = text => text === "null" ? base : byNumber.get(Number(text));
function differing(a, b) {
  const mine = policyOf(a), theirs = policyOf(b);
  return run.layers.map((name, i) => ({name, cells: run.techniques.map(t => [cellOf(mine[i], t)[0], cellOf(theirs[i], t)[0]])}))
    .filter(one => one.cells.some(([x, y]) => x !== y));
}
drawn.push(what => {
  if (!sides[0] || what === "table" || what === "heat") return;
  const now = regarded();
  pair.first = pair.fixed?.first ?? (now && policyOf(now) ? now : base);
  pair.second = pair.fixed?.second ?? besides(pair.first);
  sides.forEach((side, k) => {
    side.replaceChildren(...pairOptions());
    side.value = String(pair[["first", "second"][k]].number);
  });
  const {first: a, second: b} = pair, found = differing(a, b), used = run.techniques.filter((_, k) => found.some(one => one.cells[k][0] !== one.cells[k][1]));
  const d = difference(a, b), cost = c => a[c.name] != null && b[c.name] != null;
  const told = [`${nameOf(a)} less ${nameOf(b)}: ${against(a, b)}`, ...run.costs.filter(c => c.listed && cost(c)).map(c =>
    `${c.short} ${a[c.name] >= b[c.name] ? "+" : "-"}${costText(c.name, Math.abs(a[c.name] - b[c.name]))} (${(a[c.name] / b[c.name]).toFixed(2)} times)`)];
  fill("pairtold", el("p", {}, told.join("; ") + "."), d.paired ? el("p", {class: "soft"}, `Samples that only ${nameOf(a)} gets right: ${d.gain}; that only ${nameOf(b)} does: ${d.lost}.`) : null,
    el("p", {class: "soft"}, found.length ? `${found.length} of ${run.layers.length} layers differ:` : "Their layers do not differ.",
      a.distilled !== undefined && (a.epochs !== b.epochs || a.distilled !== b.distilled) ? ` Trained ${a.epochs} and ${b.epochs ?? 0} epochs${a.distilled || b.distilled ? `, distilled: ${[a, b].filter(t => t.distilled).map(nameOf).join(", ")}` : ""}.` : ""));
  const gaps = found.map(one => gapAlone(a, b, one.name)), known = gaps.some(([ms]) => ms !== null);
  const sum = k => gaps.some(gap => gap[k] === null) ? null : gaps.reduce((total, gap) => total + gap[k], 0);
  fill("pairsum", known ? el("p", {class: "soft"}, `Time and divergence of a difference are estimates: of the latency model, and of how each layer alone moved the outputs ` +
    `(KL, nats). What layers share is told with the first of them. They add up to ${[signed(sum(0), " ms"), signed(sum(1), " nats")].filter(x => x !== "-").join(" and ")}; ` +
    "together, changes may cost more or less.") : null);
  fill("pair", ...(found.length ? [el("tr", {}, el("th", {class: "text"}, "layer"), ...(known ? [el("th", {}, "time, est."), el("th", {}, "divergence, est.")] : []), ...used.flatMap(t => [el("th", {class: "text"}, `${t}: ${nameOf(a)}`), el("th", {class: "text"}, nameOf(b))])),
    ...found.map((one, i) => el("tr", {}, el("td", {class: "text name"}, one.name),
      ...(known ? [el("td", {}, signed(gaps[i][0], " ms")), el("td", {}, signed(gaps[i][1], ""))] : []), ...used.flatMap(t => {
      const [x, y] = one.cells[run.techniques.indexOf(t)];
      return [x, y].map(text => el("td", {class: `text${x !== y ? " differs" : " soft"}`}, text || "unchanged"));
    })))] : []));
});
sides.forEach((side, k) => side?.addEventListener("change", () => {
  pair.fixed = {first: pair.first, second: pair.second, [["first", "second"][k]]: trialOf(side.value)};
  update("pair");
}));
