// The planner in the browser: it computes the memory surface itself, so that a slider answers at once and without a kernel.
// `at` is nbkit.memory.sweep.Surface.at, line by line; a test compares the two. Self-contained: no import, no network.

const METHODS = ["lora", "qlora", "full"];
const COLOURS = {  // Okabe and Ito's, as in nbkit.memory.view; text never depends on them
  "weights": "#0072B2", "gathered weights": "#56B4E9", "adapters": "#8C6BB1", "gradients": "#009E73", "optimizer": "#E69F00",
  "activations": "#CC79A7", "gradients in flight": "#A6761D", "loss": "#D55E00", "autocast copies": "#999999",
  "buckets": "#66A61E", "seen in a fake step": "#7f7f7f",
};
const WORDS = { yes: "fits", tight: "tight", no: "does not fit" };
const SHAPES = {  // a verdict is told by its word, its shape and its colour
  yes: "M2 7.5 5.5 11 12 3.5", tight: "M7 1.8 13 12.2H1ZM7 5.5v3.2M7 10.2v.6", no: "M3 3 11 11M11 3 3 11",
};

const line = (pair, tokens) => pair[0] + pair[1] * tokens;

// The memory for `batch` x `seq` tokens: {parts, allocated, low, high}. `how`: one, each, sharded.
export function at(surface, key, batch, seq, rank, gpus = 1, how = "one") {
  const variant = surface.variants[key], way = variant.ways[how], tokens = batch * seq;
  const here = [1, tokens, Math.min(tokens, surface.tile), rank], grid = [...here, ...here.map((x) => x / gpus)];
  let best = null;
  for (const parts of Object.values(way.moments)) {
    const found = {};
    let sum = 0;
    for (const [name, c] of Object.entries(parts)) {
      const gib = c.reduce((total, value, i) => total + value * grid[i], 0);
      sum += gib;
      if (gib > 1e-9) found[name] = gib;
    }
    if (!best || sum > best.sum) best = { sum, parts: found };
  }
  const formula = Object.values(best.parts).reduce((a, b) => a + b, 0), mended = how === "one" ? variant.correction : null;
  if (!mended) {
    const high = Math.max(formula * (1 + way.doubt) + way.outside[1], formula / way.safe);
    return { parts: best.parts, allocated: formula, low: formula * (1 - way.doubt) + way.outside[0], high, basis: "formula" };
  }
  const more = line(mended.allocated, tokens), parts = { ...best.parts };
  if (more > 0) parts["seen in a fake step"] = more;
  else for (const name of Object.keys(parts)) parts[name] *= (formula + more) / formula;
  return { parts, allocated: formula + more, low: formula + line(mended.low, tokens), high: formula + line(mended.high, tokens), basis: mended.basis };
}

export const verdict = (point, room) => (point.high <= room ? "yes" : point.low <= room ? "tight" : "no");

// One device, a copy on each of several where that fits, else shared weights: as nbkit.memory.plan chooses.
export function howFor(data, key, batch, seq, rank) {
  if (data.gpus === 1) return "one";
  return at(data.surface, key, batch, seq, rank, data.gpus, "each").high <= data.room ? "each" : "sharded";
}

export function point(data, key, batch, seq, rank) {
  const how = howFor(data, key, batch, seq, rank);
  return { ...at(data.surface, key, batch, seq, rank, data.gpus, how), how };
}

// Tokens a second on one device, without the wire and the optimizer: nbkit.memory.time's two regimes.
export function speed(data, key, batch, seq, rank) {
  const work = data.work[key], { flops, layer, unpack } = data.rates, tokens = batch * seq;
  const busy = ((work.token + work.rank * rank) * tokens + work.pair * batch * seq * seq) / flops;
  return tokens / (Math.cbrt((work.launches * layer) ** 3 + busy ** 3) + work.unpacked / unpack);
}

function largest(fits, limit) {
  let low = 0, high = limit;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (fits(middle)) low = middle; else high = middle - 1;
  }
  return low;
}

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 14 14");
  svg.setAttribute("aria-hidden", "true");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

const gib = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
const whole = (value) => Math.round(value).toLocaleString("en-US");
const short = (value) => (value >= 1024 && value % 1024 === 0 ? `${value / 1024}k` : value >= 1024 && (value * 2) % 1024 === 0 ? `${value / 1024}k` : String(value));
const SLIDERS = [
  ["batch", "rows in a micro-batch", (v) => `${whole(v)} row${v === 1 ? "" : "s"}`],
  ["seq", "tokens in a row", (v) => `${whole(v)} tokens`],
  ["rank", "LoRA rank", (v) => `rank ${v}`],
];

class View {
  constructor(model, el) {
    this.model = model;
    this.data = model.get("data");
    this.uid = Math.random().toString(36).slice(2, 8);
    this.root = this.build();
    el.append(this.root);
    this.listen = () => this.update();
    for (const name of ["method", "checkpointing", "batch", "seq", "rank"]) model.on(`change:${name}`, this.listen);
    this.update();
  }

  remove() {
    this.model.off(null, this.listen);
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.root.remove();
  }

  // `later`: while a slider is dragged the picture moves at once, the kernel hears the place where it comes to rest.
  set(changes, later = false) {
    for (const [name, value] of Object.entries(changes)) this.model.set(name, value);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.model.save_changes(), later ? 150 : 0);
  }

  get key() { return `${this.model.get("method")}:${this.model.get("checkpointing") ? "on" : "off"}`; }

  build() {
    const { title, place, names } = this.data;
    this.chip = node("span", { class: "nbkit-plan-chip", role: "status", "data-nbkit": "verdict" });
    this.facts = node("span", { class: "nbkit-plan-facts", "data-nbkit": "facts" });
    const head = node("div", { class: "nbkit-plan-head" }, node("b", {}, `${title} on ${place}`), this.chip, this.facts);

    this.rows = {};
    const bars = node("div", { class: "nbkit-plan-bars", role: "radiogroup", "aria-label": "method and checkpointing" });
    for (const method of METHODS) for (const on of [false, true]) {
      const key = `${method}:${on ? "on" : "off"}`, input = node("input", { type: "radio", name: `nbkit-${this.uid}`, value: key });
      input.addEventListener("change", () => this.set({ method, checkpointing: on }));
      const stack = node("span", { class: "nbkit-plan-stack", "aria-hidden": "true" });
      const range = node("span", { class: "nbkit-plan-range" });
      const name = node("span", { class: "nbkit-plan-name" }, names[method], on ? node("small", {}, "checkpointing") : "");
      const row = node("label", { class: "nbkit-plan-row", "data-nbkit": key }, input, name, stack, range);
      this.rows[key] = { row, input, stack, range };
      bars.append(row);
    }
    this.axis = node("div", { class: "nbkit-plan-axis", "aria-hidden": "true" });
    bars.append(this.axis);
    this.legend = node("ul", { class: "nbkit-plan-legend", "aria-label": "parts of the peak, in GiB", "data-nbkit": "parts" });

    this.sliders = {};
    const controls = node("div", { class: "nbkit-plan-sliders" });
    for (const [name, label, text] of SLIDERS) {
      const stops = this.data.stops[name], id = `nbkit-${this.uid}-${name}`;
      const input = node("input", { type: "range", id, min: 0, max: stops.length - 1, step: 1, "data-nbkit": name });
      const output = node("output", { for: id });
      input.addEventListener("input", () => this.set({ [name]: stops[Number(input.value)] }, true));
      this.sliders[name] = { input, output, text, stops };
      controls.append(node("div", { class: "nbkit-plan-slider" }, node("label", { for: id }, label), output, input));
    }
    this.map = node("div", { class: "nbkit-plan-map", role: "img", "data-nbkit": "map" });
    this.limits = node("div", { class: "nbkit-plan-limits", "data-nbkit": "limits" });
    this.layMap();
    this.map.addEventListener("click", (event) => {
      const { batch, seq } = event.target.dataset;
      if (batch) this.set({ batch: Number(batch), seq: Number(seq) });
    });
    const map = node("div", { class: "nbkit-plan-side" },
      node("div", { class: "nbkit-plan-caption" }, "batch × tokens in a row", node("small", {}, "click to go there")), this.map, this.limits);
    const body = node("div", { class: "nbkit-plan-body" }, node("div", { class: "nbkit-plan-main" }, bars, this.legend, controls), map);
    this.note = node("div", { class: "nbkit-plan-note" });
    return node("div", { class: "nbkit-plan", "data-nbkit": "planner", role: "region", "aria-label": `memory planner, ${title} on ${place}` },
      head, body, this.note);
  }

  update() {
    const { data, key } = this, { room } = data, [batch, seq, rank] = ["batch", "seq", "rank"].map((name) => this.model.get(name));
    const points = {};
    for (const other of Object.keys(this.rows)) points[other] = point(data, other, batch, seq, rank);
    const now = points[key], state = verdict(now, room), most = Math.max(...Object.values(points).map((p) => p.high));
    // Bars beyond twice the card are cut: the card's line must stay where it can be read.
    const scale = Math.min(Math.max(room * 1.18, Math.min(most, now.high) * 1.04), Math.max(room, now.high) * 2);
    for (const [other, { row, input, stack, range }] of Object.entries(this.rows)) {
      const one = points[other], fits = verdict(one, room);
      input.checked = other === key;
      row.dataset.fits = fits;
      row.toggleAttribute("data-chosen", other === key);
      let from = 0;
      stack.replaceChildren(...Object.entries(one.parts).map(([name, size]) => {
        const part = node("i", { style: `left:${(100 * from) / scale}%;width:${(100 * size) / scale}%;background:${COLOURS[name] || "#7f7f7f"}` });
        from += size;
        return part;
      }), node("s", { style: `left:${(100 * one.low) / scale}%;width:${(100 * (one.high - one.low)) / scale}%` }),
        node("u", { style: `left:${(100 * room) / scale}%` }));
      stack.toggleAttribute("data-cut", one.high > scale);
      range.textContent = `${gib(one.low)}–${gib(one.high)}`;
      range.append(icon(SHAPES[fits]));
      input.setAttribute("aria-label", `${data.names[other.split(":")[0]]}${other.endsWith(":on") ? " with checkpointing" : ""}, ${gib(one.low)} to ${gib(one.high)} GiB, ${WORDS[fits]}`);
    }
    this.axis.replaceChildren(node("span", { style: `left:${(100 * room) / scale}%` }, `${gib(room)} GiB usable`));
    this.chip.dataset.fits = state;
    this.chip.replaceChildren(icon(SHAPES[state]), WORDS[state]);
    const each = data.gpus > 1 ? ` on each of ${data.gpus}, ${now.how === "sharded" ? "weights shared (FSDP)" : "a copy on each (DDP)"}` : "";
    const rate = speed(data, key, batch, seq, rank), accumulation = Math.max(1, Math.ceil(data.effective / data.gpus / batch));
    this.facts.textContent = `${gib(now.low)} to ${gib(now.high)} of ${gib(room)} GiB${each} · about ${whole(rate)} tokens/s${data.gpus > 1 ? " each" : ""} · ${batch} × ${accumulation}${data.gpus > 1 ? ` × ${data.gpus}` : ""} = ${batch * accumulation * data.gpus} rows a step`;
    this.legend.replaceChildren(...Object.entries(now.parts).filter(([, size]) => size >= 0.005).map(([name, size]) =>
      node("li", {}, node("i", { style: `background:${COLOURS[name] || "#7f7f7f"}` }), `${name} `, node("b", {}, size.toFixed(2)))));
    for (const [name, { input, output, text, stops }] of Object.entries(this.sliders)) {
      const value = this.model.get(name);
      let index = stops.indexOf(value);
      if (index < 0) index = stops.reduce((near, stop, i) => (Math.abs(stop - value) < Math.abs(stops[near] - value) ? i : near), 0);
      if (Number(input.value) !== index) input.value = index;
      output.textContent = text(value);
      input.setAttribute("aria-valuetext", text(value));
      input.style.setProperty("--at", `${(100 * index) / Math.max(1, stops.length - 1)}%`);
    }
    const idle = this.model.get("method") === "full";
    this.sliders.rank.input.disabled = idle;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawMap(key, batch, seq, rank));
    const beyond = data.positions && seq > data.positions ? [`${whole(seq)} tokens are more than the model's ${whole(data.positions)} positions.`] : [];
    this.note.textContent = [`Memory by ${now.basis}; speed within a factor of ${(1 + data.rates.spread).toFixed(1)}.`, ...beyond, ...data.notes].join(" ");
    this.root.dataset.high = now.high.toFixed(4);
    this.root.dataset.allocated = now.allocated.toFixed(4);
  }

  // The cells stand once; a move changes what they say. After the frame: the bars are what the eye is on.
  layMap() {
    const { batch: rows, seq: columns } = this.data.stops;
    this.cells = [];
    for (const b of [...rows].reverse()) {
      this.map.append(node("span", { class: "nbkit-plan-tick" }, String(b)));
      for (const s of columns) {
        const cell = node("i", { "data-batch": b, "data-seq": s });
        this.cells.push([cell, b, s]);
        this.map.append(cell);
      }
    }
    this.map.append(node("span", { class: "nbkit-plan-tick" }));
    columns.forEach((s, i) => this.map.append(node("span", { class: "nbkit-plan-tick" }, i % 2 === 0 || columns.length < 9 ? short(s) : "")));
    this.map.style.gridTemplateColumns = `26px repeat(${columns.length}, minmax(0, 1fr))`;
  }

  drawMap(key, batch, seq, rank) {
    const { data } = this, { room } = data;
    const high = (b, s) => point(data, key, b, s, rank).high <= room;
    for (const [cell, b, s] of this.cells) {
      const one = point(data, key, b, s, rank), fits = verdict(one, room);
      if (cell.dataset.fits !== fits) cell.dataset.fits = fits;
      cell.title = `${b} × ${whole(s)}: ${gib(one.low)}–${gib(one.high)} GiB, ${WORDS[fits]}`;
      cell.toggleAttribute("data-here", b === batch && s === seq);
      cell.style.setProperty("--fill", Math.min(1, one.high / room).toFixed(2));
    }
    const most = largest((b) => high(b, seq), 4096), longest = largest((s) => high(batch, s), 1 << 20);
    this.map.setAttribute("aria-label", `At ${whole(seq)} tokens up to ${whole(most)} rows fit; with ${whole(batch)} rows up to ${whole(longest)} tokens fit.`);
    this.limits.replaceChildren(
      node("span", { class: "nbkit-plan-key", "aria-hidden": "true" }, ...["yes", "tight", "no"].flatMap((fits) => [node("i", { "data-fits": fits }), ` ${WORDS[fits]} `])),
      node("span", {}, `largest batch at ${whole(seq)} tokens `, node("b", { "data-nbkit": "largest-batch" }, whole(most))),
      node("span", {}, `longest row, ${whole(batch)} at a time `, node("b", { "data-nbkit": "longest-row" }, whole(longest))));
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  return () => view.remove();
}

export default { render };
