"""The script of a sweep's page: pick a head and see its curve; show only what has one status.

It reads the numbers that stand in the page and fetches nothing; what comes from the data is written
as text, never as HTML. Without it the page shows everything but the curve of one head.
"""

from __future__ import annotations

SCRIPT = """
"use strict";
const known = document.getElementById("numbers");
if (known) {
const {steps, columns, statuses} = JSON.parse(known.textContent);
const by = id => document.getElementById(id);
const [head, data, kind, plot, said] = ["head", "data", "kind", "curve", "said"].map(by);
const W = 640, H = 300, L = 46, R = 30, T = 10, B = 34;
let chosen = steps.length - 1;

// Training steps on a log axis on which step 0 has its own place.
const first = steps.find(s => s > 0) || 1;
const place = s => s > 0 ? 0.6 + Math.log10(s / first) : 0;
const ends = [place(steps[0]), place(steps[steps.length - 1])];
const x = s => L + (W - L - R) * (ends[1] > ends[0]
  ? (place(s) - ends[0]) / (ends[1] - ends[0]) : 0.5);

function column() {
  return columns.find(c => c.weights === head.value && c.data === data.value);
}

function fits(status) {
  const kinds = statuses[status][1];
  if (!kind.value) return true;
  return kind.value === "ok" ? kinds.length === 0 : kinds.includes(kind.value);
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  plot.append(made);
  return made;
}

function ticks(low, high) {
  const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
  const stride = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
  const list = [];
  for (let t = Math.ceil(low / stride) * stride; t <= high + 1e-9 * stride; t += stride)
    list.push(Math.abs(t) < 1e-9 * stride ? 0 : t);
  return list;
}

function draw() {
  const c = column();
  plot.replaceChildren();
  if (!c) { said.textContent = "There is no such estimate."; return; }
  const finite = c.value.filter(v => v !== null);
  const span = Math.max(...finite) - Math.min(...finite);
  const halves = c.half.filter(h => h !== null).sort((a, b) => a - b);
  const room = Math.max(span / 4, 2 * (halves[halves.length >> 1] || 0)) || 1;
  const low = finite.length ? Math.min(...finite) - room : 0;
  const high = finite.length ? Math.max(...finite) + room : 1;
  const y = v => T + (H - T - B) * (high - Math.min(Math.max(v, low), high)) / (high - low);
  for (const t of ticks(low, high)) {
    element("line", {x1: L, x2: W - R, y1: y(t), y2: y(t), class: "grid"});
    element("text", {x: L - 6, y: y(t) + 4, "text-anchor": "end"}, +t.toPrecision(4));
  }
  const last = steps[steps.length - 1], marks = steps[0] === 0 ? [0, last] : [steps[0], last];
  for (let power = 1; power < last; power *= 10)
    if (power >= first) marks.push(power);
  const taken = [];
  for (const s of marks) {
    if (taken.some(at => Math.abs(at - x(s)) < 48)) continue;
    taken.push(x(s));
    element("text", {x: x(s), y: H - B + 16, "text-anchor": "middle"}, s);
  }
  element("text", {x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle"}, "training step");
  const runs = [];
  c.value.forEach((v, i) => {
    if (v === null) return;
    if (i && c.value[i - 1] !== null) runs[runs.length - 1].push(i); else runs.push([i]);
  });
  for (const run of runs) {
    const edge = sign => run.map(i => [x(steps[i]), y(c.value[i] + sign * (c.half[i] || 0))]);
    element("polygon", {points: [...edge(1), ...edge(-1).reverse()].join(" "), class: "band"});
    element("polyline", {points: edge(0).join(" "), class: "line"});
  }
  c.status.forEach((status, i) => {
    const wrong = statuses[status][1].length > 0;
    const look = (wrong ? "wrong" : "fine") + (fits(status) ? "" : " faint");
    const at = {cx: x(steps[i]), cy: c.value[i] === null ? H - B - 6 : y(c.value[i])};
    if (c.value[i] === null)
      element("text", {x: at.cx, y: at.cy + 4, "text-anchor": "middle", class: look}, "×");
    else element("circle", {...at, r: wrong ? 3.6 : 2.6, class: look});
    if (i === chosen) element("circle", {...at, r: 8, class: "chosen"});
  });
  const v = c.value[chosen], error = c.error[chosen];
  const number = v === null ? "no value" : "λ̂ = " + v + (error === null ? "" : " ± " + error);
  const rhat = c.rhat[chosen] === null ? "" : ", R-hat " + c.rhat[chosen];
  said.textContent = c.weights + " on " + c.data + " at step " + steps[chosen] + ": "
    + number + rhat + "; " + statuses[c.status[chosen]][0];
  // Traces of this curve are framed, wherever they stand.
  for (const trace of document.querySelectorAll("figure[data-head]")) {
    const mine = trace.dataset.head === c.weights && trace.dataset.data === c.data;
    trace.classList.toggle("picked", mine);
    if (mine && Number(trace.dataset.step) === steps[chosen])
      said.textContent += ". Its trace is framed below.";
  }
  plot.setAttribute("aria-valuenow", chosen);
  plot.setAttribute("aria-valuetext", said.textContent);
}

function filter() {
  let shown = 0;
  const rows = document.querySelectorAll("tr[data-kinds]");
  for (const row of rows) {
    row.hidden = kind.value !== "" && !row.dataset.kinds.split(" ").includes(kind.value);
    shown += !row.hidden;
  }
  const count = by("shown");
  if (count) count.textContent = shown + " of " + rows.length + " rows are shown.";
  draw();
}

function pick(weights, on, step) {
  head.value = weights;
  data.value = on;
  if (step !== undefined) chosen = Math.max(steps.indexOf(Number(step)), 0);
  draw();
}

head.addEventListener("change", draw);
data.addEventListener("change", draw);
kind.addEventListener("change", filter);
plot.addEventListener("keydown", event => {
  const move = {ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, Home: -1e9, End: 1e9};
  if (!(event.key in move)) return;
  event.preventDefault();
  chosen = Math.min(Math.max(chosen + move[event.key], 0), steps.length - 1);
  draw();
});
plot.addEventListener("click", event => {
  const box = plot.getBoundingClientRect();
  const at = (event.clientX - box.left) * W / box.width;
  const far = steps.map(s => Math.abs(x(s) - at));
  chosen = far.indexOf(Math.min(...far));
  draw();
});
document.addEventListener("click", event => {
  const link = event.target.closest("a[data-kind], a[data-step]");
  if (!link) return;
  if (link.dataset.kind) { kind.value = link.dataset.kind; filter(); return; }
  pick(link.dataset.head, link.dataset.data, link.dataset.step);
});
document.body.classList.add("scripted");
filter();
}
"""
