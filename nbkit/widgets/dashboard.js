// The dashboard in the browser: one store a model, any number of views of it, plain canvas. It draws what the kernel
// sends and sends back three words: stop, pause, resume. Self-contained: no import, no network.

const RING = 2000;  // rows kept; thinned at twice as many
const ACK_MS = 2000;  // a click that is not answered by then meets a busy kernel
const [STEP, , LOSS, SMOOTH, RATE, GRADIENT, SPEED] = [0, 1, 2, 3, 4, 5, 6];  // a row; [1] is seconds
const TONES = { training: "--nb-train", evaluating: "--nb-train", done: "--nb-good", stopped: "--nb-quiet",
  paused: "--nb-warn", stalled: "--nb-warn", failed: "--nb-bad", waiting: "--nb-quiet" };
const SHAPES = {  // on a 14 by 14 grid; a state is told by its word, its shape and its colour
  waiting: ["circle", { cx: 7, cy: 7, r: 5, fill: "none", "stroke-width": 2, "stroke-dasharray": "3 2.2" }],
  training: ["circle", { cx: 7, cy: 7, r: 5, stroke: "none" }],
  evaluating: ["path", { d: "M7 1 13 7 7 13 1 7Z", stroke: "none" }],
  paused: ["path", { d: "M3 2h3v10H3zM8 2h3v10H8z", stroke: "none" }],
  stalled: ["path", { d: "M7 1.5 13.5 12.5H.5Z", stroke: "none" }],
  done: ["path", { d: "M2 7.5 5.5 11 12 3.5", fill: "none", "stroke-width": 2.4, "stroke-linecap": "round" }],
  stopped: ["rect", { x: 2, y: 2, width: 10, height: 10, rx: 1.5, stroke: "none" }],
  failed: ["path", { d: "M3 3 11 11M11 3 3 11", fill: "none", "stroke-width": 2.4, "stroke-linecap": "round" }],
};
const ENDED = new Set(["done", "stopped", "failed"]);

export function number(value, digits = 3) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) {
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    return `${mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa}e${Number(exponent)}`;
  }
  if (size >= 10 ** (digits - 1)) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(digits - 1 - Math.floor(Math.log10(size)));
}

export function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found.length < 2 && count < 12 ? ticks(low, high, 2 * count) : found;
}

export function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const m of [1, 2, 5]) found.push(m * 10 ** power);
  const inside = found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  const decades = inside.filter((v) => /^1(e|0*$|$)/.test(String(v)) || /^0\.0*1$/.test(String(v)));
  return inside.length > 6 && decades.length > 1 ? decades : inside;
}

// Short, distinct labels for evenly spaced values: 2e-4, 0.02, 1.5, 12k.
export function tickLabel(value, step) {
  if (Math.abs(value) < step * 1e-6) return "0";
  if (Math.abs(value) >= 1e4 && Math.abs(value) < 1e6) return `${+(value / 1e3).toFixed(2)}k`;
  if (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) return number(value);
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.max(0, 1 - Math.floor(Math.log10(step))) });
}

export function thin(rows, most) {
  const size = Math.ceil((rows.length / most) * 3), kept = [];
  for (let i = 0; i < rows.length; i += size) {
    const part = rows.slice(i, i + size).sort((a, b) => a[LOSS] - b[LOSS]);
    kept.push(...[...new Set([rows[i], part[0], part[part.length - 1]])].sort((a, b) => a[STEP] - b[STEP]));
  }
  if (kept[kept.length - 1] !== rows[rows.length - 1]) kept.push(rows[rows.length - 1]);
  return kept;
}

// The index of the element whose key is nearest to `at`; -1 when there is none.
export function nearest(list, at) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle][0] <= at) low = middle; else high = middle;
  }
  return high >= 0 && Math.abs(list[high][0] - at) < Math.abs(list[low][0] - at) ? high : Math.min(low, high);
}

export class Store {
  constructor() {
    Object.assign(this, { rows: [], evals: [], loads: [], samples: [], head: {}, machine: {}, run: "", n: -1 });
    this.views = new Set();
  }

  // Take a snapshot (`history`) or a delta. Returns false when deltas were missed in between.
  take(message) {
    const whole = message.history;
    if (whole) {
      Object.assign(this, { rows: [], evals: [], loads: [], samples: [], head: {}, machine: {}, run: whole.run });
    } else if (message.n != null && message.n <= this.n) return true;
    const complete = whole || message.n == null || this.n < 0 || message.n === this.n + 1;
    if (message.n != null) this.n = message.n;
    const { rows = [], evals = [], loads = [], samples = [], head, machine, back } = whole || message;
    if (back != null) {
      this.rows = this.rows.filter((row) => row[STEP] < back);
      this.evals = this.evals.filter((row) => row[0] < back);
    }
    this.append("rows", rows, true);
    this.append("evals", evals, true);
    this.append("loads", loads, false);
    this.samples.push(...samples);
    Object.assign(this.head, head);
    Object.assign(this.machine, machine);
    for (const view of this.views) view.changed(message);
    return complete;
  }

  append(name, fresh, strict) {
    const list = this[name];
    for (const row of fresh) {
      const last = list.length ? list[list.length - 1][0] : -Infinity;
      if (row[0] > last || (!strict && row[0] === last)) list.push(row);
    }
    if (list.length > 2 * RING) this[name] = name === "rows" ? thin(list, RING) : list.filter((_, i) => i % 2 === 0);
  }
}

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const PANELS = [
  { key: "loss", title: "loss", main: true },
  { key: "rate", title: "learning rate", column: RATE, zero: true },
  { key: "gradient", title: "gradient norm", column: GRADIENT },
  { key: "speed", title: "tokens/s", column: SPEED, zero: true },
  { key: "memory", title: "memory", load: 2, zero: true },
  { key: "percent", title: "utilisation", load: 1, zero: true },
];

class View {
  constructor(model, el, store) {
    Object.assign(this, { model, store, log: false, hover: null, picked: null, pending: null, frame: 0, seen: true });
    this.root = this.build();
    el.append(this.root);
    this.resize = new ResizeObserver(() => this.redraw());
    this.resize.observe(this.root);
    this.sight = new IntersectionObserver(([entry]) => { this.seen = entry.isIntersecting; this.redraw(); });
    this.sight.observe(this.root);
    this.theme = new MutationObserver(() => this.redraw());
    for (const target of [document.body, document.documentElement])
      this.theme.observe(target, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class", "theme", "style"] });
    store.views.add(this);
    this.changed({ history: true, samples: store.samples });
  }

  remove() {
    this.store.views.delete(this);
    for (const watcher of [this.resize, this.sight, this.theme]) watcher.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.root.remove();
  }

  build() {
    const part = (name, tag = "span", attributes = {}) => (this[name] = node(tag, { "data-nbkit": name, ...attributes }));
    this.shape = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.shape.setAttribute("viewBox", "0 0 14 14");
    this.shape.setAttribute("aria-hidden", "true");
    const state = node("span", { class: "nbkit-state", role: "status" }, this.shape, part("state"));
    const facts = node("span", { class: "nbkit-facts" }, part("step"), part("loss"), part("speed"), part("memory"), part("eta"));
    const button = (name, label, act) => {
      part(name, "button", { type: "button" }).textContent = label;
      this[name].addEventListener("click", act);
      return this[name];
    };
    const tools = node("span", { class: "nbkit-tools" },
      button("pause", "Pause", () => this.ask(this.store.head.state === "paused" ? "resume" : "pause")),
      button("stop", "Stop", () => this.ask("stop")),
      button("scale", "Log scale", () => { this.log = !this.log; this.scale.setAttribute("aria-pressed", this.log); this.redraw(); }));
    this.scale.setAttribute("aria-pressed", "false");
    this.bar = node("div");
    this.track = node("div", { class: "nbkit-progress", role: "progressbar", "aria-label": "steps", "aria-valuemin": 0 }, this.bar);
    const about = node("div", { class: "nbkit-about" }, part("run"), part("note", "span", { role: "status" }));
    part("cause", "div"); part("hint", "div");
    this.failure = node("div", { class: "nbkit-cause", role: "alert", hidden: "" }, this.cause, this.hint);
    this.charts = node("div", { class: "nbkit-charts", tabindex: 0, role: "group",
      "aria-label": "charts; arrow keys read values step by step, Escape leaves" }, ...PANELS.map((panel) => this.panel(panel)));
    this.charts.addEventListener("keydown", (event) => this.key(event));
    this.charts.addEventListener("blur", () => this.point(null));
    this.picker = node("select", { "aria-label": "evaluation whose samples are shown", "data-nbkit": "sample-step" });
    this.picker.addEventListener("change", () => { this.picked = Number(this.picker.value); this.showSamples(); });
    part("texts", "div", { class: "nbkit-texts" });
    this.pane = node("section", { class: "nbkit-samples", hidden: "", "aria-label": "samples", "data-nbkit": "samples" },
      node("header", {}, node("b", {}, "Samples"), part("compared", "small"), this.picker), this.texts);
    return node("div", { class: "nbkit", "data-nbkit": "dashboard", role: "region", "aria-label": "training run" },
      node("div", { class: "nbkit-head" }, state, facts, tools), this.track, about, this.failure, this.charts, this.pane);
  }

  panel(panel) {
    const value = (name, mark) => {
      const out = node("output", { "data-nbkit": `value-${name}`, "aria-live": "off" });
      (this.values ||= {})[name] = node("span");
      out.append(...(mark ? [mark] : []), this.values[name]);
      return out;
    };
    const line = (color, faint) => node("i", { style: `border-color:var(${color});${faint ? "opacity:.4" : ""}` });
    const values = panel.main
      ? [value("loss", line("--nb-train", true)), value("smooth", line("--nb-train")), value("eval", node("i", { class: "nbkit-dot" }))]
      : [value(panel.key)];
    const title = node("b", {}, panel.title), more = node("small"), canvas = node("canvas", { role: "img" });
    (this.panels ||= {})[panel.key] = { title, more, canvas };
    canvas.addEventListener("pointermove", (event) => this.point(this.stepAt(canvas, event.offsetX)));
    canvas.addEventListener("pointerleave", () => this.point(null));
    return node("div", { class: `nbkit-panel${panel.main ? " nbkit-main" : ""}`, "data-nbkit": `panel-${panel.key}` },
      node("div", { class: "nbkit-label" }, title, more, ...values), canvas);
  }

  // What the kernel said: text at once, pictures with the next frame.
  changed(message) {
    if (message.ack || message.error) this.answered(message);
    if (message.head || message.history) this.showHead();
    if (message.samples?.length || message.history) this.listSamples();
    this.root.dataset.rows = this.store.rows.length;
    this.redraw();
  }

  showHead() {
    const { state = "waiting", step = 0, steps = 0, loss, speed, memory, eta, doing, cause = "", hint = "" } = this.store.head;
    const put = (name, text) => { if (this[name].textContent !== text) this[name].textContent = text; };
    put("state", state);
    put("step", `step ${step}/${steps || "?"}`);
    put("loss", loss ? `loss ${loss}` : "");
    put("speed", speed || "");
    put("memory", memory ? `${memory} GiB` : "");
    put("eta", eta ? `ETA ${eta}` : "");
    const { reason } = this.store.machine;
    put("run", `${this.store.run} · live widget${reason ? ` · no GPU: ${reason}` : ""}`);
    put("cause", cause);
    put("hint", hint ? `Fix: ${hint}` : "");
    put("pause", state === "paused" ? "Resume" : "Pause");
    this.failure.hidden = !cause;
    this.bar.style.width = `${steps ? Math.min(100, (100 * step) / steps) : 0}%`;
    this.track.setAttribute("aria-valuenow", step);
    this.track.setAttribute("aria-valuemax", steps);
    if (this.root.dataset.state !== state) {
      this.root.dataset.state = state;
      this.root.style.setProperty("--nb-tone", `var(${TONES[state] || "--nb-quiet"})`);
      const [tag, attributes] = SHAPES[state] || SHAPES.waiting;
      const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
      this.shape.replaceChildren(shape);
    }
    this.root.toggleAttribute("data-ended", ENDED.has(state));
    const settled = { stop: ENDED.has(state), pause: state === "paused" || ENDED.has(state), resume: state !== "paused" };
    if (this.pending && settled[this.pending]) this.pending = null;
    if (!this.pending) this.say(doing || "");
    this.enable();
  }

  enable() {
    const idle = !ENDED.has(this.store.head.state);
    this.stop.disabled = !idle || this.pending === "stop";
    this.pause.disabled = !idle || this.pending !== null;
  }

  say(text, loud = false) {
    this.note.textContent = text;
    this.note.className = loud ? "nbkit-loud" : "";
  }

  ask(word) {
    this.pending = word;
    this.model.send({ kind: word });
    this.say({ stop: "stopping after this step…", pause: "pausing after this step…", resume: "resuming…" }[word]);
    this.enable();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const terminal = word === "stop" ? `nbkit stop ${this.store.run} in a terminal` : `run.${word}() later`;
      this.say(`kernel busy: use the kernel's interrupt button, or ${terminal}`, true);
      if (word !== "stop") { this.pending = null; this.enable(); }
    }, ACK_MS);
  }

  answered({ ack, error }) {
    clearTimeout(this.timer);
    if (error) { this.pending = null; this.say(error, true); this.enable(); }
    else if (this.pending === ack && ack === "stop") this.say("stopping after this step: a checkpoint and the adapter are saved");
    else if (this.pending === ack && ack === "pause") this.say("pausing after this step: a checkpoint is saved");
  }

  listSamples() {
    const steps = [...new Set(this.store.samples.map((sample) => sample.step))].sort((a, b) => a - b);
    this.pane.hidden = !steps.length;
    if (!steps.length) return;
    const follow = this.picked == null || this.picked === this.newest;
    this.newest = steps[steps.length - 1];
    if (follow || !steps.includes(this.picked)) this.picked = this.newest;
    this.picker.replaceChildren(...steps.map((step) => node("option", { value: step }, `step ${step}`)));
    this.picker.value = String(this.picked);
    this.picker.hidden = steps.length < 2;
    this.steps = steps;
    this.showSamples();
  }

  showSamples() {
    const before = this.steps[this.steps.indexOf(this.picked) - 1];
    this.compared.textContent = before == null ? `at step ${this.picked}` : `at step ${this.picked}, changes since step ${before} marked`;
    const marked = { "=": (text) => document.createTextNode(text), "+": (text) => node("ins", {}, text), "-": (text) => node("del", {}, text) };
    const latest = new Map();
    for (const sample of this.store.samples) if (sample.step === this.picked) latest.set(sample.index, sample);
    this.texts.replaceChildren(...[...latest.values()].map(({ prompt, segments }) => node("article", {},
      node("h4", {}, prompt), node("p", {}, ...segments.map(([kind, text]) => marked[kind](text))))));
  }

  key(event) {
    if (event.target !== this.charts) return;
    const { rows } = this.store, at = this.hover == null ? rows.length : nearest(rows, this.hover);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === "Escape") this.point(null);
    else if (to != null && rows.length) this.point(rows[Math.max(0, Math.min(rows.length - 1, to))][STEP]);
    else return;
    event.preventDefault();
    event.stopPropagation();  // in a notebook arrows and Escape move between cells
  }

  point(step) {
    if (step === this.hover) return;
    this.hover = step;
    this.redraw();
  }

  span() {
    const { rows, evals } = this.store;
    const first = rows.length ? rows[0][STEP] : 0;
    const last = Math.max(rows.length ? rows[rows.length - 1][STEP] : 0, evals.length ? evals[evals.length - 1][0] : 0);
    return [Math.min(first, last - 1), Math.max(last, first + 1)];
  }

  stepAt(canvas, x) {
    const [first, last] = this.span();
    const part = (x - LEFT) / (canvas.clientWidth - LEFT - RIGHT);
    const found = nearest(this.store.rows, first + Math.max(0, Math.min(1, part)) * (last - first));
    return found < 0 ? null : this.store.rows[found][STEP];
  }

  redraw() {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; if (this.seen) this.draw(); });
  }

  draw() {
    const style = getComputedStyle(this.root);
    const color = (name) => style.getPropertyValue(`--nb-${name}`).trim();
    const palette = { ink: style.color, train: color("train"), eval: color("eval"), quiet: color("quiet"), paper: color("paper") };
    const span = this.span(), { rows, evals, loads, machine, head } = this.store;
    const row = this.hover == null ? rows[rows.length - 1] : rows[nearest(rows, this.hover)];
    this.read(row, rows, evals, loads, machine, head);
    for (const panel of PANELS) {
      const { canvas } = this.panels[panel.key];
      const lines = panel.main
        ? [{ points: column(rows, LOSS), color: palette.train, alpha: 0.32, width: 1 }, { points: column(rows, SMOOTH), color: palette.train, width: 2 },
           { points: evals, color: palette.eval, width: 1.5, dots: true }]
        : panel.load
          ? [{ points: loads.map((load) => [load[0], load[panel.load]]), color: palette.quiet, width: 1.5, fill: true }]
          : [{ points: column(rows, panel.column), color: palette.quiet, width: panel.zero ? 1.5 : 1, fill: panel.zero }];
      const roof = panel.key === "percent" && machine.gpu ? 100 : null;
      const limit = panel.key === "memory" && machine.gpu ? machine.total : null;
      paint(canvas, { lines, span, palette, log: panel.main && this.log, zero: panel.zero, roof, limit, hover: this.hover,
        axis: panel.main, empty: panel.load && !loads.length ? "no samples of the machine yet" : "no steps yet", font: style.fontFamily });
    }
  }

  // The values at the pointed step, else the latest ones, as text: what a screen reader and a test read.
  read(row, rows, evals, loads, machine, head) {
    const at = row ? row[STEP] : 0, put = (name, text) => { this.values[name].textContent = text; };
    const evaluated = this.hover == null ? evals[evals.length - 1] : evals.filter((pair) => pair[0] <= at).pop();
    put("loss", `train ${number(row?.[LOSS])}`);
    put("smooth", `smoothed ${number(row?.[SMOOTH])}`);
    put("eval", evaluated ? `eval ${number(evaluated[1])}` : "eval –");
    for (const panel of PANELS) if (panel.column) put(panel.key, number(row?.[panel.column]));
    const load = this.hover == null ? loads[loads.length - 1] : loads[nearest(loads, at)];
    const total = machine.gpu && machine.total ? ` of ${number(machine.total)}` : "";
    put("memory", load ? `${number(load[2])}${total} GiB` : "–");
    put("percent", load ? `${number(load[1])} %` : "–");
    this.panels.loss.more.textContent = this.hover == null ? "" : `at step ${at}`;
    this.panels.speed.title.textContent = head.speed?.endsWith("steps/s") ? "steps/s" : "tokens/s";
    this.panels.memory.title.textContent = machine.gpu ? "GPU memory" : "RAM";
    this.panels.percent.title.textContent = machine.gpu ? "GPU" : "CPU";
    this.panels.memory.more.textContent = this.panels.percent.more.textContent = machine.reason ? "no GPU" : "";
    for (const panel of PANELS) {
      const { canvas, title } = this.panels[panel.key];
      const text = panel.main ? ["loss", "smooth", "eval"].map((name) => this.values[name].textContent).join(", ") : this.values[panel.key].textContent;
      canvas.setAttribute("aria-label", `${title.textContent} by step; step ${at}: ${text}`);
    }
  }
}

const LEFT = 44, RIGHT = 8, TOP = 6;
const column = (rows, index) => rows.map((row) => [row[STEP], row[index]]);

function paint(canvas, { lines, span, palette, log, zero, roof, limit, hover, axis, empty, font }) {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d"), bottom = height - (axis ? 20 : 6), right = width - RIGHT;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = `10.5px ${font}`;
  let low = Infinity, high = -Infinity;
  for (const { points } of lines) for (const [, value] of points)
    if (value != null && (!log || value > 0)) { if (value < low) low = value; if (value > high) high = value; }
  if (low > high) {
    pen.fillStyle = palette.ink; pen.globalAlpha = 0.5; pen.textAlign = "center";
    pen.fillText(empty, (LEFT + right) / 2, (TOP + bottom) / 2);
    pen.globalAlpha = 1;
    return;
  }
  if (zero && !log) low = Math.min(0, low);
  if (roof) high = Math.max(roof, high);
  if (limit) high = Math.max(limit, high);
  if (log) { low *= 0.92; high *= 1.08; }
  else { const room = (high - low || Math.abs(high) || 1) * 0.06; if (!zero || low < 0) low -= room; high += roof ? 0 : room; }
  const f = log ? Math.log : (v) => v, bottomValue = f(low), range = f(high) - bottomValue || 1;
  const x = (step) => LEFT + ((step - span[0]) / (span[1] - span[0])) * (right - LEFT);
  const y = (value) => bottom - ((f(value) - bottomValue) / range) * (bottom - TOP);
  pen.strokeStyle = pen.fillStyle = palette.ink;
  pen.textAlign = "right"; pen.textBaseline = "middle"; pen.lineWidth = 1;
  const marks = log ? logTicks(low, high) : ticks(low, high, axis ? 5 : 3), gap = marks.length > 1 ? marks[1] - marks[0] : Math.abs(marks[0]) || 1;
  for (const mark of marks) {
    const level = Math.round(y(mark)) + 0.5;
    pen.globalAlpha = 0.09; pen.beginPath(); pen.moveTo(LEFT, level); pen.lineTo(right, level); pen.stroke();
    pen.globalAlpha = 0.62; pen.fillText(log ? number(mark, 1) : tickLabel(mark, gap), LEFT - 7, level);
  }
  if (axis) {
    pen.textBaseline = "alphabetic";
    const steps = ticks(span[0], span[1], Math.max(2, Math.floor((right - LEFT) / 90))).filter(Number.isInteger);
    for (const step of steps) {
      const text = tickLabel(step, 1);
      pen.textAlign = x(step) > right - 16 ? "right" : "center";
      pen.fillText(text, pen.textAlign === "right" ? right : x(step), height - 5);
    }
  }
  if (limit) { pen.globalAlpha = 0.35; pen.setLineDash([4, 4]); pen.beginPath(); pen.moveTo(LEFT, y(limit)); pen.lineTo(right, y(limit)); pen.stroke(); pen.setLineDash([]); }
  pen.save();
  pen.beginPath(); pen.rect(LEFT - 1, 0, right - LEFT + 2, bottom + 1); pen.clip();
  pen.lineJoin = "round";
  for (const line of lines) {
    const shown = line.points.filter(([, value]) => value != null && (!log || value > 0));
    if (!shown.length) continue;
    pen.strokeStyle = pen.fillStyle = line.color;
    pen.beginPath();
    shown.forEach(([step, value], i) => (i ? pen.lineTo(x(step), y(value)) : pen.moveTo(x(step), y(value))));
    pen.globalAlpha = line.alpha || 1; pen.lineWidth = line.width;
    if (line.dots) pen.globalAlpha = 0.55;
    pen.stroke();
    if (line.fill) {
      pen.lineTo(x(shown[shown.length - 1][0]), bottom); pen.lineTo(x(shown[0][0]), bottom);
      pen.globalAlpha = 0.1; pen.fill();
    }
    if (line.dots || shown.length === 1) for (const [step, value] of shown) {
      pen.globalAlpha = 1; pen.beginPath(); pen.arc(x(step), y(value), 3.4, 0, 7); pen.fillStyle = line.color; pen.fill();
      pen.strokeStyle = palette.paper; pen.lineWidth = 1.2; pen.stroke();
    }
  }
  pen.restore();
  if (hover != null) {
    pen.globalAlpha = 0.4; pen.strokeStyle = palette.ink; pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(Math.round(x(hover)) + 0.5, TOP); pen.lineTo(Math.round(x(hover)) + 0.5, bottom); pen.stroke();
    pen.globalAlpha = 1;
    for (const { points, color, alpha } of lines) {
      const at = points[nearest(points, hover)];
      if (!at || at[1] == null || (alpha && alpha < 0.4 && lines.length > 2) || (log && at[1] <= 0)) continue;
      pen.beginPath(); pen.arc(x(at[0]), y(at[1]), 3, 0, 7); pen.fillStyle = color; pen.fill();
    }
  }
  pen.globalAlpha = 1;
}

export default () => {
  const store = new Store();
  return {
    initialize({ model }) {
      let asked = 0;
      const on = (message) => {
        if (store.take(message) || Date.now() - asked < 2000) return;
        asked = Date.now();
        model.send({ kind: "ready", n: -1 });  // something was missed: ask for all of it
      };
      store.take(model.get("history"));
      model.on("msg:custom", on);
      model.send({ kind: "ready", n: store.n });
      return () => model.off("msg:custom", on);
    },
    render({ model, el }) {
      const view = new View(model, el, store);
      return () => view.remove();
    },
  };
};
