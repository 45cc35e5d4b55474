// The dashboard in the browser: one store a model, any number of views of it, plain canvas. It draws what the kernel
// sends and sends back three words: stop, pause, resume. Self-contained: no import, no network.

const RING = 2000;  // rows kept; thinned at twice as many
const ACK_MS = 2000;  // a click that is not answered by then meets a busy kernel
const SILENT_MS = 20000;  // the kernel says something every 5 s while the run goes on
const STEP = 0, LOSS = 2, SMOOTH = 3, RATE = 4, GRADIENT = 5, SPEED = 6;  // of a row; 1 is seconds
const LEFT = 44, RIGHT = 8, TOP = 6;  // margins of a chart, in pixels
const ENDED = new Set(["done", "stopped", "failed"]);
const ASKED = { stop: "stopping after this step…", pause: "pausing after this step…", resume: "resuming…" };
// A state is told by its word, its shape (a path on a 14 by 14 grid, filled or drawn with a pen) and its colour.
const STATES = {
  waiting: ["quiet", "M12 7A5 5 0 1 1 7 2", "pen"],
  training: ["train", "M12 7A5 5 0 1 1 2 7A5 5 0 1 1 12 7"],
  evaluating: ["train", "M7 1 13 7 7 13 1 7Z"],
  paused: ["warn", "M3 2h3v10H3zM8 2h3v10H8z"],
  stalled: ["warn", "M7 1.5 13.5 12.5H.5Z"],
  done: ["good", "M2 7.5 5.5 11 12 3.5", "pen"],
  stopped: ["quiet", "M2 2h10v10H2z"],
  failed: ["bad", "M3 3 11 11M11 3 3 11", "pen"],
};
const PANELS = [
  { key: "loss", title: "loss", main: true },
  { key: "rate", title: "learning rate", column: RATE, zero: true },
  { key: "gradient", title: "gradient norm", column: GRADIENT },
  { key: "speed", title: "tokens/s", column: SPEED, zero: true, cap: 3 },  // times the median: one odd step flattens nothing
  { key: "memory", title: "memory", load: 2, zero: true },
  { key: "percent", title: "utilisation", load: 1, zero: true },
];

// 2e-4, 0.0132, 1.03, 412, 5,020, 1.2e6: short, and never 0 for what is not 0. As `number` in head.py.
export function number(value, digits = 3) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const short = `${mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa}e${Number(exponent)}`;
  if (size < 1e-3 || size >= 1e6 || (size < 1e-2 && short.length <= 4)) return short;
  if (size >= 10 ** (digits - 1)) return Math.round(value).toLocaleString("en-US");
  return value.toFixed(digits - 1 - Math.floor(Math.log10(size)));
}

// About `count` round values from `low` to `high`, at least two where there is room for them.
export function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) found.push(i * step);
  return found.length < 2 && count < 12 ? ticks(low, high, 2 * count) : found;
}

// 1, 2 and 5 of each decade, the decades alone when that would be many, even steps when fewer than two are inside.
export function logTicks(low, high) {
  const inside = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    inside.push(...[1, 2, 5].map((m) => Number(`${m}e${power}`)).filter((value) => value >= low * 0.999 && value <= high * 1.001));
  const decades = inside.filter((value) => value.toExponential().startsWith("1e"));
  return inside.length > 6 && decades.length > 1 ? decades : inside.length > 1 ? inside : ticks(low, high, 4);
}

// Short and distinct for values `step` apart: 2e-4, 0.02, 1.5, 12k.
export function tickLabel(value, step) {
  const size = Math.abs(value);
  if (size < step * 1e-6) return "0";
  if (size >= 1e4 && size < 1e6) return `${+(value / 1e3).toFixed(2)}k`;
  if (size < 1e-3 || size >= 1e6) return number(value);
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.max(0, 1 - Math.floor(Math.log10(step))) });
}

// About `most` rows: of each stretch the first, and those with the lowest and the highest loss, so that no spike is lost.
export function thin(rows, most) {
  const size = Math.ceil((3 * rows.length) / most), kept = [];
  for (let i = 0; i < rows.length; i += size) {
    const sorted = rows.slice(i, i + size).sort((a, b) => a[LOSS] - b[LOSS]);
    kept.push(...[...new Set([rows[i], sorted[0], sorted[sorted.length - 1]])].sort((a, b) => a[STEP] - b[STEP]));
  }
  const last = rows[rows.length - 1];
  return kept[kept.length - 1] === last ? kept : [...kept, last];
}

// The index of the element whose first value is nearest to `at`; -1 when there is none.
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
    Object.assign(this, { views: new Set(), n: -1, frozen: null }).clear("");
  }

  clear(run) {
    Object.assign(this, { rows: [], evals: [], loads: [], samples: [], head: {}, machine: {}, run, named: run, again: "nbkit.watch()" });
  }

  // Take a snapshot (`history`) or a delta, numbered by `n`. Returns false when deltas were missed in between.
  take(message) {
    this.heard = Date.now();
    this.frozen ||= message.frozen;
    const { history, n = this.n } = message;
    const old = !history && message.n != null && n <= this.n;  // seen before, or a sign of life
    if (history) this.clear(history.run);
    for (const name of ["named", "again"]) if (history?.[name]) this[name] = history[name];
    const complete = history || message.frozen || n <= this.n + 1 || this.n < 0;
    this.n = Math.max(n, history ? n : this.n);
    const { rows = [], evals = [], loads = [], samples = [], head, machine, back } = old ? {} : history || message;
    if (back != null) for (const name of ["rows", "evals", "loads"]) this[name] = this[name].filter((row) => row[0] < back);
    for (const [name, fresh] of Object.entries({ rows, evals, loads })) this.append(name, fresh);
    this.samples.push(...samples);
    Object.assign(this.head, head);
    Object.assign(this.machine, machine);
    for (const view of this.views) view.changed(old ? {} : message);
    return Boolean(complete);
  }

  // A step that is there already is dropped, so that repeated and late messages do no harm.
  append(name, fresh) {
    const list = this[name];
    for (const row of fresh) {
      const last = list.at(-1)?.[0] ?? -Infinity;
      if (row[0] > last || (name === "loads" && row[0] === last)) list.push(row);
    }
    if (list.length > 2 * RING) this[name] = name === "rows" ? thin(list, RING) : list.filter((_, i) => i % 2 === 0);
  }
}

// Text goes in as text nodes only: whatever a model or a file says, it cannot become markup.
function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

class View {
  constructor(model, el, store) {
    Object.assign(this, { model, store, log: false, hover: null, picked: null, pending: null, frame: 0, seen: true, values: {}, panels: {} });
    this.root = this.build();
    el.append(this.root);
    this.resize = new ResizeObserver(() => this.redraw());
    this.sight = new IntersectionObserver((entries) => { this.seen = entries.at(-1).isIntersecting; this.redraw(); });
    this.theme = new MutationObserver(() => this.redraw());
    for (const watcher of [this.resize, this.sight]) watcher.observe(this.root);
    for (const target of [document.body, document.documentElement]) this.theme.observe(target, { attributes: true });
    this.silence = setInterval(() => this.listen(), 5000);
    store.views.add(this);
    this.changed({ history: true });
  }

  remove() {
    this.store.views.delete(this);
    for (const watcher of [this.resize, this.sight, this.theme]) watcher.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    clearInterval(this.silence);
    this.root.remove();
  }

  build() {
    const part = (name, tag = "span", attributes = {}) => (this[name] = node(tag, { "data-nbkit": name, ...attributes }));
    const button = (name, label, act) => {
      part(name, "button", { type: "button" }).append(label);
      this[name].addEventListener("click", act);
      return this[name];
    };
    const svg = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
    const icon = svg("svg");
    this.shape = svg("path");
    icon.setAttribute("viewBox", "0 0 14 14");
    icon.setAttribute("aria-hidden", "true");
    icon.append(this.shape);
    this.bar = node("div");
    this.track = node("div", { class: "nbkit-progress", role: "progressbar", "aria-label": "steps", "aria-valuemin": 0 }, this.bar);
    this.failure = node("div", { class: "nbkit-cause", role: "alert", hidden: "" }, part("cause", "div"), part("hint", "div"));
    this.charts = node("div", { class: "nbkit-charts", tabindex: 0, role: "group",
      "aria-label": "charts; arrow keys read values step by step, Escape leaves" }, ...PANELS.map((panel) => this.panel(panel)));
    this.charts.addEventListener("keydown", (event) => this.key(event));
    this.charts.addEventListener("blur", () => this.point(null));
    this.picker = node("select", { "aria-label": "evaluation whose samples are shown", "data-nbkit": "sample-step" });
    this.picker.addEventListener("change", () => { this.picked = Number(this.picker.value); this.showSamples(); });
    this.pane = node("section", { class: "nbkit-samples", hidden: "", "aria-label": "samples", "data-nbkit": "samples" },
      node("header", {}, node("b", {}, "Samples"), part("compared", "small"), this.picker), part("texts", "div", { class: "nbkit-texts" }));
    const head = node("div", { class: "nbkit-head" },
      node("span", { class: "nbkit-state", role: "status" }, icon, part("state")),
      node("span", { class: "nbkit-facts" }, ...["step", "loss", "speed", "memory", "eta"].map((name) => part(name))),
      node("span", { class: "nbkit-tools" },
        button("pause", "Pause", () => this.ask(this.store.head.state === "paused" ? "resume" : "pause")),
        button("stop", "Stop", () => this.ask("stop")),
        button("scale", "Log scale", () => { this.log = !this.log; this.scale.setAttribute("aria-pressed", this.log); this.redraw(); })));
    this.scale.setAttribute("aria-pressed", "false");
    return node("div", { class: "nbkit", "data-nbkit": "dashboard", role: "region", "aria-label": "training run" },
      head, this.track, node("div", { class: "nbkit-about" }, part("run"), part("note", "span", { role: "status" })),
      this.failure, this.charts, this.pane);
  }

  panel(panel) {
    const value = (name, ...mark) => node("output", { "data-nbkit": `value-${name}`, "aria-live": "off" }, ...mark, (this.values[name] = node("span")));
    const line = (more) => node("i", { class: "nbkit-line", style: more });
    const values = panel.main
      ? [value("loss", line("opacity:.4")), value("smooth", line("")), value("eval", node("i", { class: "nbkit-dot" }))]
      : [value(panel.key)];
    const title = node("b", {}, panel.title), more = node("small"), canvas = node("canvas", { role: "img" });
    this.panels[panel.key] = { title, more, canvas };
    canvas.addEventListener("pointermove", (event) => this.point(this.stepAt(canvas, event.offsetX)));
    canvas.addEventListener("pointerleave", () => this.point(null));
    return node("div", { class: `nbkit-panel${panel.main ? " nbkit-main" : ""}`, "data-nbkit": `panel-${panel.key}` },
      node("div", { class: "nbkit-label" }, title, more, ...values), canvas);
  }

  // What the kernel said: text at once, pictures with the next frame.
  changed(message) {
    if (this.store.frozen) return this.freeze(this.store.frozen.data["text/html"]);
    if (message.ack) this.answered(message);
    if (message.head || message.machine || message.history) this.showHead();
    if (message.samples || message.history) this.listSamples();
    if (this.silent) { this.silent = false; this.say(this.store.head.doing || "", this.store.head.away); }
    this.root.dataset.rows = this.store.rows.length;
    this.redraw();
  }

  showHead() {
    const { state = "waiting", step = 0, steps = 0, loss, speed, memory, eta, doing, away, cause, hint } = this.store.head;
    const { reason } = this.store.machine, ended = ENDED.has(state), [tone, path, pen] = STATES[state] || STATES.waiting;
    const texts = { state, step: `step ${step}/${steps || "?"}`, loss: loss && `loss ${loss}`, speed, memory: memory && `${memory} GiB`,
      eta: eta && `ETA ${eta}`, run: `${this.store.run} · live widget${reason ? ` · ${reason}` : ""}`, cause,
      hint: hint && `Fix: ${hint}`, pause: state === "paused" ? "Resume" : "Pause" };
    for (const [name, text] of Object.entries(texts)) if (this[name].textContent !== (text || "")) this[name].textContent = text || "";
    this.failure.hidden = !cause;
    this.bar.style.width = `${steps ? Math.min(100, (100 * step) / steps) : 0}%`;
    this.track.setAttribute("aria-valuenow", step);
    this.track.setAttribute("aria-valuemax", steps);
    this.root.dataset.state = state;
    this.root.toggleAttribute("data-ended", ended);
    this.root.style.setProperty("--nb-tone", `var(--nb-${tone})`);
    this.shape.setAttribute("d", path);
    this.shape.setAttribute("class", pen ? "nbkit-pen" : "");
    const settled = { stop: ended, pause: state === "paused" || ended, resume: state !== "paused" };
    if (this.pending && settled[this.pending]) this.pending = null;
    if (!this.pending || away) { clearTimeout(this.timer); this.say(doing || "", away); }
    else if (this.away) this.say(ASKED[this.pending]);
    this.away = away;
    this.enable();
  }

  // For pages whose notebook cannot be reached from here. frozen.py made the HTML and escaped what it was told.
  freeze(html) {
    this.root.innerHTML = html;
    this.root.append(node("p", {}, `Shown by the kernel. To keep it in the notebook: ${this.store.again} in a cell`));
  }

  enable() {
    const ended = ENDED.has(this.store.head.state);
    this.stop.disabled = ended || this.pending === "stop";
    this.pause.disabled = ended || this.pending !== null;
  }

  say(text, loud = false) {
    if (this.note.textContent !== text) this.note.textContent = text;
    this.note.className = loud ? "nbkit-loud" : "";
  }

  ask(word) {
    this.pending = word;
    this.model.send({ kind: word });
    this.say(ASKED[word]);
    this.enable();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const other = word === "stop" ? `nbkit stop ${this.store.named} in a terminal there` : "click again when the cell has ended";
      this.say(`no answer: the kernel is busy, or its link is lost. Use its interrupt button, or ${other}`, true);
      if (word !== "stop") { this.pending = null; this.enable(); }
    }, ACK_MS);
  }

  answered({ ack, error }) {
    clearTimeout(this.timer);
    if (error) { this.pending = null; this.say(error, true); this.enable(); }
    else if (this.store.head.away) this.showHead();
    else if (this.pending === ack && ack === "stop") this.say("stopping after this step: a checkpoint and the adapter are saved");
    else if (this.pending === ack && ack === "pause") this.say("pausing after this step: a checkpoint is saved");
  }

  listen() {
    if (ENDED.has(this.store.head.state) || Date.now() - this.store.heard < SILENT_MS) return;
    this.silent = true;
    this.say(`no word from the kernel; the run may go on: ${this.store.again} in a cell shows it`, true);
  }

  listSamples() {
    const steps = [...new Set(this.store.samples.map((sample) => sample.step))].sort((a, b) => a - b), newest = steps.at(-1);
    this.pane.hidden = !steps.length;
    if (this.picked === this.newest || !steps.includes(this.picked)) this.picked = newest;  // follows until one is picked
    Object.assign(this, { steps, newest });
    this.picker.replaceChildren(...steps.map((step) => node("option", { value: step }, `step ${step}`)));
    this.picker.value = String(this.picked);
    this.picker.hidden = steps.length < 2;
    this.showSamples();
  }

  showSamples() {
    const before = this.steps[this.steps.indexOf(this.picked) - 1], latest = new Map();  // of each prompt
    this.compared.textContent = `at step ${this.picked}${before == null ? "" : `, changes since step ${before} marked`}`;
    for (const sample of this.store.samples) if (sample.step === this.picked) latest.set(sample.index, sample);
    const marked = ([kind, text]) => (kind === "=" ? text : node(kind === "+" ? "ins" : "del", {}, text));
    this.texts.replaceChildren(...[...latest.values()].map(({ prompt, segments }) =>
      node("article", {}, node("h4", {}, prompt), node("p", {}, ...segments.map(marked)))));
  }

  key(event) {
    const { rows } = this.store, at = this.hover == null ? rows.length : nearest(rows, this.hover);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (event.key === "Escape") this.point(null);
    else if (to != null && rows.length) this.point(rows[Math.max(0, Math.min(rows.length - 1, to))][STEP]);
    else return;
    event.preventDefault();
    event.stopPropagation();  // in a notebook these keys move between cells
  }

  point(step) {
    if (step !== this.hover) this.redraw();
    this.hover = step;
  }

  span() {
    const { rows, evals } = this.store;
    const first = rows.length ? rows[0][STEP] : 0, last = Math.max(rows.at(-1)?.[STEP] ?? 0, evals.at(-1)?.[0] ?? 0);
    return [Math.min(first, last - 1), Math.max(last, first + 1)];
  }

  stepAt(canvas, x) {
    const [first, last] = this.span(), part = (x - LEFT) / (canvas.clientWidth - LEFT - RIGHT);
    return this.store.rows[nearest(this.store.rows, first + part * (last - first))]?.[STEP] ?? null;
  }

  redraw() {
    this.frame ||= requestAnimationFrame(() => { this.frame = 0; if (this.seen) this.draw(); });
  }

  draw() {
    const style = getComputedStyle(this.root), color = (name) => style.getPropertyValue(`--nb-${name}`).trim();
    const { rows, evals, loads, machine, head } = this.store, span = this.span(), during = loads.filter(([at]) => at >= span[0]);
    const pick = (index) => rows.map((row) => [row[STEP], row[index]]);
    this.read(rows[this.hover == null ? rows.length - 1 : nearest(rows, this.hover)]);
    for (const panel of PANELS) {
      const small = (points) => [{ points, color: color("quiet"), width: panel.zero ? 1.5 : 1, fill: panel.zero }];
      const lines = panel.main
        ? [{ points: pick(LOSS), color: color("train"), alpha: 0.35, width: 1 }, { points: pick(SMOOTH), color: color("train"), width: 2 },
           { points: evals, color: color("eval"), alpha: 0.55, width: 1.5, dots: true }]
        : small(panel.load ? during.map((load) => [load[0], load[panel.load]]) : pick(panel.column));
      const none = ENDED.has(head.state) || (rows.length > 1 && !panel.load) ? "nothing recorded" : panel.load ? "a reading comes each second" : "waiting for the first step";
      const limit = machine.gpu ? { memory: machine.total, percent: 100 }[panel.key] : null;
      paint(this.panels[panel.key].canvas, { lines, span, limit, none, axis: panel.main, zero: panel.zero, cap: panel.cap, log: panel.main && this.log,
        hover: this.hover, ink: style.color, paper: color("paper"), font: style.fontFamily });
    }
  }

  // The values at the pointed step, else the latest ones, as text: what a screen reader and a test read.
  read(row) {
    const { evals, loads, machine, head } = this.store, at = row ? row[STEP] : 0, latest = this.hover == null;
    const put = (name, text) => { if (this.values[name].textContent !== text) this.values[name].textContent = text; };
    const tested = latest ? evals.at(-1) : evals.findLast((pair) => pair[0] <= at), load = latest ? loads.at(-1) : loads[nearest(loads, at)];
    put("loss", `train ${number(row?.[LOSS])}`);
    put("smooth", `smoothed ${number(row?.[SMOOTH])}`);
    put("eval", `eval ${number(tested?.[1])}`);
    for (const { key, column } of PANELS) if (column) put(key, number(row?.[column]));
    put("memory", load ? `${number(load[2])}${machine.gpu && machine.total ? ` of ${+machine.total.toFixed(1)}` : ""} GiB` : "–");
    put("percent", load ? `${number(load[1])} %` : "–");
    const titles = { speed: head.speed?.endsWith("steps/s") ? "steps/s" : "tokens/s", memory: machine.gpu ? "GPU memory" : "RAM", percent: machine.gpu ? "GPU" : "CPU" };
    for (const { key, main } of PANELS) {
      const { title, more, canvas } = this.panels[key];
      if (titles[key]) title.textContent = titles[key];
      more.textContent = main ? (latest ? "" : `at step ${at}`) : machine.reason && key in titles && key !== "speed" ? "no GPU" : "";
      const text = (main ? ["loss", "smooth", "eval"] : [key]).map((name) => this.values[name].textContent).join(", ");
      canvas.setAttribute("aria-label", `${title.textContent} by step; step ${at}: ${text}`);
    }
  }
}

// Where a value stands: the scale of one chart, or null when there is nothing to show.
function scaled(lines, span, { zero, log, limit, cap }, right, bottom) {
  const values = lines.flatMap(({ points }) => points.map(([, value]) => value)).filter((value) => value != null && (!log || value > 0));
  if (!values.length) return null;
  let low = Math.min(...values), high = Math.max(...values);
  if (cap) high = Math.min(high, cap * values.sort((a, b) => a - b)[values.length >> 1]);
  if (zero) low = Math.min(0, low);
  if (limit) high = Math.max(limit, high);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  if (log) [low, high] = [low * 0.92, high * 1.08];
  else [low, high] = [zero && low >= 0 ? low : low - room, high + room];
  const bend = log ? Math.log : (value) => value, base = bend(low), reach = bend(high) - base || 1;
  return { low, high, x: (step) => LEFT + ((step - span[0]) / (span[1] - span[0])) * (right - LEFT),
    y: (value) => Math.max(0, bottom - ((bend(value) - base) / reach) * (bottom - TOP)) };
}

function paint(canvas, options) {
  const { lines, span, log, limit, hover, axis, none, ink, paper, font } = options;
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const pen = canvas.getContext("2d"), bottom = height - (axis ? 20 : 6), right = width - RIGHT;
  const text = (what, x, y, align) => { pen.textAlign = align; pen.fillText(what, x, y); };
  const stroke = (alpha, ...points) => { pen.globalAlpha = alpha; pen.beginPath(); points.forEach((p, i) => (i ? pen.lineTo(...p) : pen.moveTo(...p))); pen.stroke(); };
  const dot = (x, y, radius, color) => { pen.globalAlpha = 1; pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fillStyle = color; pen.fill(); pen.strokeStyle = paper; pen.lineWidth = 1.2; pen.stroke(); };
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  Object.assign(pen, { font: `10.5px ${font}`, fillStyle: ink, strokeStyle: ink, lineWidth: 1, lineJoin: "round", textBaseline: "middle" });
  const scale = scaled(lines, span, options, right, bottom);
  pen.globalAlpha = 0.5;
  if (!scale) return text(none, (LEFT + right) / 2, (TOP + bottom) / 2, "center");
  const { low, high, x, y } = scale, marks = log ? logTicks(low, high) : ticks(low, high, axis ? 5 : 3);
  for (const mark of marks) {
    const level = Math.round(y(mark)) + 0.5;
    stroke(0.09, [LEFT, level], [right, level]);
    pen.globalAlpha = 0.65;
    text(log ? number(mark, 1) : tickLabel(mark, marks[1] - marks[0] || Math.abs(mark)), LEFT - 7, level, "right");
  }
  for (const step of axis ? ticks(...span, Math.max(2, Math.floor((right - LEFT) / 90))).filter(Number.isInteger) : [])
    if (x(step) > right - 16) text(tickLabel(step, 1), right, height - 7, "right"); else text(tickLabel(step, 1), x(step), height - 7, "center");
  if (limit) { pen.setLineDash([4, 4]); stroke(0.35, [LEFT, y(limit)], [right, y(limit)]); pen.setLineDash([]); }
  for (const { points, color, alpha = 1, width: thick, fill, dots } of lines) {
    const shown = points.filter(([, value]) => value != null && (!log || value > 0)).map(([step, value]) => [x(step), y(value)]);
    if (!shown.length) continue;
    Object.assign(pen, { strokeStyle: color, fillStyle: color, lineWidth: thick });
    stroke(alpha, ...shown);
    if (fill) { pen.lineTo(shown.at(-1)[0], bottom); pen.lineTo(shown[0][0], bottom); pen.globalAlpha = 0.1; pen.fill(); }
    if (dots || shown.length === 1) for (const [left, top] of shown) dot(left, top, 3.4, color);
  }
  if (hover == null) return;
  const cross = Math.round(x(hover)) + 0.5;
  Object.assign(pen, { strokeStyle: ink, lineWidth: 1 });
  stroke(0.4, [cross, TOP], [cross, bottom]);
  for (const { points, color, dots, alpha } of lines) {
    const at = points[nearest(points, hover)];
    if (at?.[1] != null && !dots && !alpha && (!log || at[1] > 0)) dot(x(at[0]), y(at[1]), 3, color);
  }
}

// Put the result into each output of the notebook that shows this widget. The kernel has done so by the output's id, but
// a page that was loaded later does not know that id. In JupyterLab and Notebook a widget's manager knows the notebook.
function replace({ model_id, data }, manager) {
  for (const { outputs } of manager?.context?.model?.cells ?? [])
    for (let i = 0; i < (outputs?.length ?? 0); i++)
      if (outputs.get(i).data?.["application/vnd.jupyter.widget-view+json"]?.model_id === model_id)
        outputs.set(i, { output_type: "display_data", metadata: {}, data });
}

// One store a model: the script is called once for each, then for each of its views.
export default () => {
  const store = new Store();
  return {
    initialize({ model }) {
      let asked = 0;
      const take = (message) => {
        if (message.frozen) replace(message.frozen, model.widget_manager);
        return store.take(message);
      };
      const on = (message) => {
        if (take(message) || Date.now() - asked < ACK_MS) return;
        asked = Date.now();
        model.send({ kind: "ready", n: -1 });  // something was missed: ask for all of it
      };
      take(model.get("history"));
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
