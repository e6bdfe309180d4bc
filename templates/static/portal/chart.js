// The loss curve: train and validation loss over steps, the learning rate on request, values under the pointer.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 280;
const PAD = { left: 46, right: 52, top: 10, bottom: 28 };
const SERIES = [["train", "train/loss"], ["eval", "eval/loss"], ["rate", "train/learning_rate"]];
const POLL_MS = 2000;

const root = document.getElementById("chart");
const svg = root.querySelector("svg");
const hover = root.querySelector("output");
const rateToggle = document.getElementById("show-rate");
// Step -> value: a program that resumed reports steps again, and the last line counts.
const points = { train: new Map(), eval: new Map(), rate: new Map() };
let offset = 0;
let scales = null;

function take(events) {
  for (const event of events) {
    if (event.kind !== "metric") continue;
    for (const [name, key] of SERIES) {
      if (typeof event[key] === "number") points[name].set(event.step, event[key]);
    }
  }
}

function sorted(name) {
  return [...points[name]].sort((a, b) => a[0] - b[0]);
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let value = Math.ceil(low / size) * size; value <= high + size / 1e6; value += size) found.push(value);
  return found;
}

function add(tag, attributes, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  svg.append(node);
  return node;
}

function draw() {
  const losses = [...points.train.values(), ...points.eval.values()];
  const steps = [...points.train.keys(), ...points.eval.keys()];
  root.hidden = losses.length === 0;
  document.getElementById("chart-empty").hidden = losses.length > 0;
  if (!losses.length) return;
  const width = root.clientWidth;
  const last = Math.max(...steps, 2);
  const low = Math.min(0, ...losses);
  const high = Math.max(...losses) * 1.05 || 1;
  const rates = [...points.rate.values()];
  const top = Math.max(...rates, 0) * 1.05 || 1;
  const x = (step) => PAD.left + ((step - 1) / (last - 1)) * (width - PAD.left - PAD.right);
  const across = (value, from, to) => HEIGHT - PAD.bottom - ((value - from) / (to - from)) * (HEIGHT - PAD.top - PAD.bottom);
  scales = { x, last, width, y: { train: (v) => across(v, low, high), eval: (v) => across(v, low, high), rate: (v) => across(v, 0, top) } };
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren();
  drawAxes(low, high, top, rates.length);
  for (const [name] of SERIES) drawLine(name);
}

function drawAxes(low, high, top, hasRate) {
  const { x, y, last, width } = scales;
  for (const value of ticks(low, high, 5)) {
    add("line", { class: "rule", x1: PAD.left, x2: width - PAD.right, y1: y.train(value), y2: y.train(value) });
    add("text", { x: PAD.left - 7, y: y.train(value) + 4, "text-anchor": "end" }, shortened(value));
  }
  for (const step of ticks(1, last, Math.max(3, width / 110)).filter(Number.isInteger)) {
    add("text", { x: x(step), y: HEIGHT - 9, "text-anchor": "middle" }, step.toLocaleString("en"));
  }
  if (rateToggle.checked && hasRate) {
    for (const value of ticks(0, top, 4)) add("text", { x: width - PAD.right + 6, y: y.rate(value) + 4 }, shortened(value));
  }
  add("line", { class: "axis", x1: PAD.left, x2: width - PAD.right, y1: HEIGHT - PAD.bottom, y2: HEIGHT - PAD.bottom });
}

function drawLine(name) {
  if (name === "rate" && !rateToggle.checked) return;
  const line = sorted(name);
  const path = line.map(([step, value], i) => `${i ? "L" : "M"}${scales.x(step).toFixed(1)} ${scales.y[name](value).toFixed(1)}`);
  add("path", { class: name, d: path.join("") });
  if (line.length && (name === "eval" || line.length === 1)) {
    for (const [step, value] of line) add("circle", { class: name, r: 3, cx: scales.x(step), cy: scales.y[name](value) });
  }
}

function shortened(value) {
  if (value === 0) return "0";
  return Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function point(event) {
  if (!scales) return;
  const wanted = event.clientX - root.getBoundingClientRect().left;
  const steps = [...new Set([...points.train.keys(), ...points.eval.keys()])];
  const step = steps.reduce((best, s) => (Math.abs(scales.x(s) - wanted) < Math.abs(scales.x(best) - wanted) ? s : best));
  svg.querySelectorAll(".cursor, .spot").forEach((node) => node.remove());
  add("line", { class: "cursor", x1: scales.x(step), x2: scales.x(step), y1: PAD.top, y2: HEIGHT - PAD.bottom });
  const lines = [`${root.dataset.step} ${step.toLocaleString("en")}`];
  for (const [name] of SERIES) {
    const value = points[name].get(step);
    if (value === undefined || (name === "rate" && !rateToggle.checked)) continue;
    add("circle", { class: `${name} spot`, r: 4, cx: scales.x(step), cy: scales.y[name](value) });
    lines.push(`${root.dataset[name]}  ${name === "rate" ? value.toExponential(2) : value.toFixed(4)}`);
  }
  hover.hidden = false;
  hover.textContent = lines.join("\n");
  hover.style.left = `${Math.min(scales.x(step) + 12, scales.width - hover.offsetWidth)}px`;
}

function leave() {
  hover.hidden = true;
  svg.querySelectorAll(".cursor, .spot").forEach((node) => node.remove());
}

async function poll() {
  const answer = await fetch(`${root.dataset.metrics}?offset=${offset}`).catch(() => null);
  const found = answer && answer.ok ? await answer.json() : { events: [], next_offset: offset };
  const isMore = found.next_offset > offset;
  offset = found.next_offset;
  take(found.events);
  if (isMore || !scales) draw();
  if (isMore) poll();
  else if (root.dataset.live === "yes") setTimeout(poll, POLL_MS);
}

root.addEventListener("pointermove", point);
root.addEventListener("pointerleave", leave);
rateToggle.addEventListener("change", draw);
new ResizeObserver(draw).observe(root.parentElement);
poll();
