"use strict";
// What the chosen trial gets wrong that the uncompressed model got right: by class, and one by one.

const classes = run.labels ? new Uint16Array(Uint8Array.from(atob(run.labels), c => c.charCodeAt(0)).buffer) : null;
const right = (packed, i) => (packed[i >> 3] >> (7 - i % 8)) & 1;
function outcomes(t) {  // per sample: before and after
  const before = bits(base), after = bits(t);
  if (!before || !after || base.images !== t.images) return null;
  return Array.from({length: t.images}, (_, i) => [right(before, i), right(after, i)]);
}
function byClass(found) {
  const rows = new Map();
  found.forEach(([before, after], i) => {
    const row = rows.get(classes[i]) ?? {class: classes[i], samples: 0, before: 0, after: 0, lost: 0, gained: 0};
    row.samples += 1; row.before += before; row.after += after;
    row.lost += before && !after ? 1 : 0; row.gained += after && !before ? 1 : 0;
    rows.set(row.class, row);
  });
  for (const row of rows.values()) row.net = row.gained - row.lost;
  return [...rows.values()].sort((a, b) => a.net - b.net || b.lost - a.lost || a.class - b.class);
}
const CLASSES = 12, WORST = 40;
let everyClass = false;
drawn.push(what => {
  if (!document.getElementById("lost") || what === "table" || what === "heat") return;
  const t = regarded(), found = t && outcomes(t);
  if (!found) { fill("lost", el("p", {class: "soft"}, "The record of this trial does not tell which samples it got right.")); fill("classes"); fill("worst"); return; }
  const lost = found.flatMap(([before, after], i) => before && !after ? [i] : []), gained = found.filter(([b, a]) => a && !b).length;
  fill("lost", el("p", {}, `Of ${t.images} val samples ${nameOf(t)} gets ${lost.length} wrong that the uncompressed model got right, and ${gained} right that it got wrong.`));
  if (classes && classes.length === t.images) {
    const rows = byClass(found), cut = everyClass || paper ? rows : rows.slice(0, CLASSES), most = Math.max(...rows.map(r => r.lost), 1);
    fill("classes", heading("class", "samples", "right before", "right now", "gained", "lost", ""), ...cut.map(r => el("tr", {},
      el("td", {class: "text"}, String(r.class)), el("td", {}, String(r.samples)), el("td", {}, `${(100 * r.before / r.samples).toFixed(1)} %`),
      el("td", {}, `${(100 * r.after / r.samples).toFixed(1)} %`), el("td", {}, String(r.gained)), barred(r.lost, most, String(r.lost)),
      el("td", {class: "text soft"}, Math.abs(r.net) <= run.clear * Math.sqrt(r.lost + r.gained) ? "within noise" : r.net < 0 ? "worse" : "better"))),
      cut.length < rows.length ? el("tr", {}, el("td", {class: "text", colspan: 7}, el("button", {type: "button", onclick: () => { everyClass = true; update("samples"); }}, `show all ${rows.length} classes`))) : null);
  } else fill("classes");
  const members = front.map(bits).filter(b => b && b.length === bits(t).length), wrong = i => members.filter(b => !right(b, i)).length;
  const worst = lost.map(i => ({i, wrong: wrong(i)})).sort((a, b) => b.wrong - a.wrong || a.i - b.i).slice(0, WORST);
  fill("worst", worst.length ? el("p", {class: "soft"}, `Lost samples by their place in the val split${members.length > 1 ? `, those first that most of the ${members.length} front members get wrong` : ""}:`) : null,
    worst.length ? command(worst.map(w => w.i).join(", "), "places of lost samples") : null,
    worst.length && classes?.length === t.images ? el("p", {class: "soft"}, `Their classes: ${worst.map(w => classes[w.i]).join(", ")}.`) : null);
});
