"use strict";
// The trade-off before the library that draws it has loaded, and where a browser cannot load it: the
// same points and lines, without what moves.

function sketch() {
  if (!stage || !plots.pareto || window.Plotly) return;
  const {data, layout} = plots.pareto(), {ink, line} = theme(), space = "http://www.w3.org/2000/svg";
  const wide = stage.clientWidth || 680, high = layout.height;
  const left = 55, right = wide - 12, top = 26, bottom = high - 105;
  const [x0, x1] = layout.xaxis.range, [y0, y1] = qualities;
  const x = value => left + (value - x0) / (x1 - x0) * (right - left);
  const y = value => bottom - (value - y0) / (y1 - y0) * (bottom - top);
  const picture = document.createElementNS(space, "svg");
  let place = picture;
  const add = (tag, attributes, text = "") => {
    const found = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    found.textContent = text;
    place.append(found);
    return found;
  };
  for (const [name, value] of Object.entries({class: "sketch", style: "display: block", width: wide, height: high, "aria-hidden": true})) picture.setAttribute(name, value);
  const text = {fill: ink, "font-size": narrow() ? 11 : 13}, flat = layout.xaxis.tickformat === "";
  for (const at of ticks(x0, x1)) {
    add("path", {d: `M${x(at)} ${top}V${bottom}`, stroke: line});
    add("text", {...text, x: x(at), y: bottom + 17, "text-anchor": "middle"}, flat ? digits(at, 3) : costText(state.axis, at));
  }
  for (const at of ticks(y0, y1)) {
    add("path", {d: `M${left} ${y(at)}H${right}`, stroke: line});
    add("text", {...text, x: left - 5, y: y(at) + 4, "text-anchor": "end"}, digits(at, 4));
  }
  add("text", {...text, x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle"}, layout.xaxis.title.text);
  add("text", {...text, "text-anchor": "middle", transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`}, layout.yaxis.title.text);
  // what lies beyond the axes is cut off, as the library does
  const area = {x: left, y: top, width: right - left, height: bottom - top};
  place = add("svg", {...area, viewBox: Object.values(area).join(" ")});
  for (const trace of data) {
    const {color, size, symbol = "circle", opacity = 1} = trace.marker, open = /open/.test(symbol);
    if (trace.line?.shape) add("path", {fill: "none", stroke: color, "stroke-width": 1.5,
      d: trace.x.map((at, i) => i ? `H${x(at)}V${y(trace.y[i])}` : `M${x(at)} ${y(trace.y[i])}`).join("")});
    trace.x.forEach((at, i) => at != null && add("circle", {cx: x(at), cy: y(trace.y[i]), r: size / 2, opacity,
      fill: open ? "none" : color, stroke: open ? color : "none", "stroke-width": trace.marker.line?.width ?? 1}));
  }
  if (handle) handle.hidden = true;
  stage.replaceChildren(picture);
}
function ticks(low, high) {  // round numbers, about six
  const rough = (high - low) / 7, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find(s => s * power >= rough) ?? 10), found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return found;
}
drawn.push(sketch);
