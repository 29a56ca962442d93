// The status page of tls-sessiond. It reads the event stream and draws what the stream says.
// Every text from the daemon enters the page through textContent, title or an ARIA attribute.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const NBSP = "\u00a0";
const NONE = "–";

// Times in milliseconds. A snapshot is due every 2 s.
const LOST_AFTER = 6000;
const RECONNECT_AFTER = 12000;
const BACKOFF_FIRST = 1000;
const BACKOFF_MAX = 15000;

// Rows that a table shows before "Show all".
const ROWS = 8;
const EVENTS = 20;

const byId = (id) => document.getElementById(id);
const list = (value) => (Array.isArray(value) ? value : []);
const sum = (items, field) => items.reduce((total, item) => total + (item[field] || 0), 0);

// ---- Elements ----

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Writes only a text that differs, so that a selection in the page survives.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Shows {text, title, bar, warn} in an element: a text, and a bar if `bar` is a share from 0 to 1.
function show(element, { text, title = "", bar, warn = false }) {
  const span = element.querySelector(".cut") ?? element.appendChild(make("span", "cut"));
  setText(span, text);
  span.title = title;
  span.classList.toggle("warn", warn);
  let meter = element.querySelector(".meter");
  if (bar === undefined) {
    meter?.remove();
    return;
  }
  if (!meter) {
    meter = svg("svg", { class: "meter", "aria-hidden": "true" });
    meter.append(svg("rect", { height: "100%" }));
    element.append(meter);
  }
  // A share above 0 stays visible.
  const width = bar > 0 ? Math.min(Math.max(bar, 0.005), 1) : 0;
  meter.firstChild.setAttribute("width", `${width * 100}%`);
}

// ---- Formats ----

// Three significant digits and a unit. A whole number such as "64 MiB" has no fraction.
function scaled(value, base, units) {
  let unit = 0;
  while (value >= base - 0.5 && unit < units.length - 1) {
    value /= base;
    unit += 1;
  }
  const digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return (Number.isInteger(value) ? value : value.toFixed(digits)) + NBSP + units[unit];
}

// 987, 4096, 12.3 k, 1.23 M. A number below 10,000 is exact.
function count(value) {
  if (!Number.isFinite(value)) return NONE;
  return value < 9999.5 ? String(Math.round(value)) : scaled(value, 1000, ["", "k", "M", "G", "T"]);
}

function bytes(value) {
  return Number.isFinite(value) ? scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]) : NONE;
}

// A share that is not 0 or 1 never rounds to 0 % or 100 %.
function percent(share) {
  if (!Number.isFinite(share)) return NONE;
  let value = share * 100;
  if (value > 0 && value < 1) value = Math.max(value, 0.1).toFixed(1);
  else if (value > 99 && value < 100) value = Math.min(value, 99.9).toFixed(1);
  else value = Math.round(value);
  return value + NBSP + "%";
}

// The two largest units: 3 d 4 h, 5 min 12 s.
function duration(seconds) {
  if (!Number.isFinite(seconds)) return NONE;
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  seconds = Math.max(0, Math.floor(seconds));
  let first = units.findIndex(([size]) => seconds >= size);
  if (first < 0) first = 3;
  return units
    .slice(first, first + 2)
    .map(([size, name], i) => {
      const amount = Math.floor((i ? seconds % units[first][0] : seconds) / size);
      return i && !amount ? "" : amount + NBSP + name;
    })
    .filter(Boolean)
    .join(" ");
}

const format = (options) => new Intl.DateTimeFormat("en-GB", { hourCycle: "h23", ...options });
const CLOCK = format({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTE = format({ hour: "2-digit", minute: "2-digit" });
const DATE = format({ day: "numeric", month: "short", year: "numeric" });
const ZONE = format({ timeZoneName: "longOffset" });

function date(formatter, seconds) {
  return Number.isFinite(seconds) ? formatter.format(seconds * 1000) : NONE;
}

// The clock time, with the date in front if it is not the day of the snapshot.
function moment(seconds, now) {
  const day = date(DATE, seconds);
  const clock = date(CLOCK, seconds);
  return day === date(DATE, now) ? clock : `${day}, ${clock}`;
}

// "1.2 k of 100 k" with a bar.
function usage(value, max, unit) {
  const text = max > 0 ? `${unit(value)} of${NBSP}${unit(max)}` : unit(value);
  return { text, title: `${value} of ${max}`, bar: max > 0 ? value / max : 0 };
}

// A title has the exact number of a rounded one, and the whole of a text that may be cut.
const exact = (value) => ({ text: count(value), title: value > 9999 ? String(value) : "" });
const name = (value) => {
  const text = String(value ?? "");
  return { text, title: text.length > 60 ? text : "" };
};
const part = (value, total) => ({ text: percent(value / total), bar: value / total });

// ---- Tables and lists ----

const expanded = new Set();

// Fills a table with rows of cells. Rows are reused, so that focus and selection survive.
function fill(element, rows) {
  if (!element.tHead) {
    const head = element.createTHead().insertRow();
    for (const title of element.dataset.columns.split(",")) head.append(make("th", "", title));
    for (const cell of head.cells) cell.scope = "col";
    element.createTBody();
  }
  const body = element.tBodies[0];
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, y) => {
    const row = body.rows[y] ?? body.insertRow();
    cells.forEach((cell, x) => {
      if (!row.cells[x]) {
        const element = row.appendChild(make(x ? "td" : "th"));
        if (!x) element.scope = "row";
      }
      show(row.cells[x], cell);
    });
  });
}

// Fills a table of the page, or shows a sentence in place of an empty table.
// A long table shows its first rows, and a button that shows all.
function table(id, rows, sentence) {
  const element = byId(id);
  const section = element.parentElement;
  const empty = section.querySelector(".empty") ?? section.appendChild(make("p", "empty"));
  setText(empty, sentence);
  empty.hidden = rows.length > 0;
  element.hidden = rows.length === 0;
  let button = section.querySelector(".more");
  if (!button && rows.length > ROWS) {
    button = section.appendChild(make("button", "more"));
    button.type = "button";
    button.addEventListener("click", () => {
      if (!expanded.delete(id)) expanded.add(id);
      render();
    });
  }
  const all = expanded.has(id);
  if (button) {
    button.hidden = rows.length <= ROWS;
    button.setAttribute("aria-expanded", String(all));
    setText(button, all ? `Show the first ${ROWS}` : `Show all ${rows.length}`);
  }
  fill(element, all ? rows : rows.slice(0, ROWS));
}

// Fills a description list with [term, cell] pairs.
function describe(id, pairs) {
  const element = byId(id);
  while (element.children.length > pairs.length * 2) element.lastElementChild.remove();
  pairs.forEach(([term, cell], i) => {
    const dt = element.children[i * 2] ?? element.appendChild(make("dt"));
    const dd = element.children[i * 2 + 1] ?? element.appendChild(make("dd"));
    setText(dt, term);
    show(dd, cell);
  });
}

// Rows of name, count and share, the largest count first.
function shares(items, title) {
  const total = sum(items, "count");
  return [...items]
    .sort((a, b) => b.count - a.count)
    .map((item) => [name(title(item) || "(no name)"), exact(item.count), part(item.count, total)]);
}

// ---- Charts ----

const rateText = (rate) => (Number.isFinite(rate) ? percent(rate) : "no handshakes");

// The rate of one step, or NaN if the step had no completed handshake.
const rateOf = (point) => point.resumed / (point.full + point.resumed);

class Chart {
  constructor(id, steps) {
    const root = byId(id);
    this.plot = root.querySelector(".plot");
    this.readout = root.querySelector(".readout");
    this.details = root.querySelector("details");
    this.steps = steps;
    this.step = 1;
    this.points = [];
    // The selection is a time, because steps move.
    this.selected = null;
    this.now = 0;
    this.details.addEventListener("toggle", () => this.fillTable());
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.select(null));
    for (const kind of ["pointerdown", "pointermove"]) {
      this.plot.addEventListener(kind, (event) => this.point(event));
    }
    this.plot.addEventListener("pointerleave", () => this.select(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  reset(points, step) {
    this.points = list(points);
    this.step = step;
    this.fillTable();
  }

  append(point) {
    if (point.time <= this.points.at(-1)?.time) return;
    this.points.push(point);
    this.fillTable();
  }

  // The time at the right edge, and the horizontal position of a time.
  get end() {
    return Math.max(this.now, this.points.at(-1)?.time ?? 0);
  }

  x(time) {
    const share = 1 - (this.end - time) / (this.steps * this.step);
    return this.left + share * (this.width - this.left - 6);
  }

  draw() {
    const width = (this.width = this.plot.clientWidth);
    if (!width) return;
    const start = this.end - this.steps * this.step;
    this.points = this.points.filter((p) => p.time > start);
    const left = (this.left = 44);
    const right = width - 6;
    const [top, bottom, volumeTop, volumeBottom] = [22, 122, 152, 214];
    const y = (rate) => bottom - rate * (bottom - top);
    const drawing = svg("svg", { "aria-hidden": "true" });
    const label = (x, y, text, anchor = "end") =>
      drawing.append(svg("text", { x, y, "text-anchor": anchor }, text));
    const line = (x1, y1, x2, y2, className) =>
      drawing.append(svg("line", { x1, y1, x2, y2, class: className }));

    // The ticks of the time axis stand at round local times.
    const every = this.step > 60 ? 21600 : 900;
    const offset = new Date(this.end * 1000).getTimezoneOffset() * 60;
    for (let t = Math.ceil((start - offset) / every) * every + offset; t <= this.end; t += every) {
      const x = this.x(t);
      line(x, top, x, volumeBottom, "grid");
      const anchor = x < left + 16 ? "start" : x > right - 16 ? "end" : "middle";
      label(x, 234, date(MINUTE, t), anchor);
    }

    // Upper panel: the rate. A step without completed handshakes interrupts the line.
    label(0, 12, "Resumption rate", "start");
    for (const rate of [0, 0.5, 1]) {
      line(left, y(rate), right, y(rate), rate ? "grid" : "axis");
      label(left - 6, y(rate) + 4, percent(rate));
    }
    let path = "";
    let before = -Infinity;
    for (const point of this.points) {
      const rate = rateOf(point);
      if (!Number.isFinite(rate)) continue;
      const place = `${this.x(point.time).toFixed(1)} ${y(rate).toFixed(1)}`;
      // A step between two gaps is a dot, which is a line of length 0 with round ends.
      path += point.time - before < 1.5 * this.step ? `L${place}` : `M${place}h0`;
      before = point.time;
    }
    drawing.append(svg("path", { class: "line", d: path }));

    // Lower panel: completed handshakes stand on the axis, failed ones hang below it.
    const up = Math.max(1, ...this.points.map((p) => p.full + p.resumed));
    const down = Math.max(0, ...this.points.map((p) => p.failed));
    const scale = (volumeBottom - volumeTop) / (up + down);
    const zero = volumeTop + up * scale;
    label(0, volumeTop - 8, `Handshakes per ${duration(this.step)}`, "start");
    if (zero > volumeTop + 20) label(left - 6, volumeTop + 9, count(up));
    if (zero < volumeBottom - 12) label(left - 6, volumeBottom + 4, count(down));
    label(left - 6, zero + 4, "0");
    line(left, zero, right, zero, "axis");
    const wide = (right - left) / this.steps;
    const bars = { resumed: "", full: "", failed: "" };
    const bar = (kind, x, from, to) => {
      const [a, b, c, d] = [x, x + wide, zero - from * scale, zero - to * scale].map((v) => v.toFixed(1));
      bars[kind] += `M${a} ${c}H${b}V${d}H${a}z`;
    };
    for (const point of this.points) {
      const x = Math.max(left, this.x(point.time) - wide);
      if (point.resumed) bar("resumed", x, 0, point.resumed);
      if (point.full) bar("full", x, point.resumed, point.resumed + point.full);
      // A failure is at least 4 px high, so that a single one is visible.
      if (point.failed) bar("failed", x, -Math.max(point.failed, 4 / scale), 0);
    }
    for (const kind in bars) drawing.append(svg("path", { class: `is-${kind}`, d: bars[kind] }));
    if (!this.points.length) label((left + right) / 2, y(0.5) - 8, "No history yet", "middle");

    const selected = this.index >= 0 ? this.points[this.index] : null;
    if (selected) {
      const x = this.x(selected.time);
      line(x, top, x, volumeBottom, "cursor");
      if (Number.isFinite(rateOf(selected))) {
        drawing.append(svg("circle", { cx: x, cy: y(rateOf(selected)), r: 3.5, class: "is-resumed" }));
      }
    }
    this.plot.replaceChildren(drawing);
    this.describe(selected);
  }

  get index() {
    return this.selected === null ? -1 : this.points.findIndex((p) => p.time >= this.selected);
  }

  // The readout is also the legend: the counts of the selected step, or of all steps.
  describe(selected) {
    const kinds = ["resumed", "full", "failed", "hits", "misses"];
    const counts = selected ?? Object.fromEntries(kinds.map((kind) => [kind, sum(this.points, kind)]));
    const texts = kinds.map((kind) => `${count(counts[kind])} ${kind}`);
    texts.unshift(selected ? `${this.clock(selected)}, ${rateText(rateOf(selected))}:` : "Total:");
    const items = texts.map((text, i) => {
      const item = make("span", "item", text);
      // The first three kinds are drawn.
      if (i > 0 && i < 4) {
        const key = svg("svg", { class: `key is-${kinds[i - 1]}`, "aria-hidden": "true" });
        key.append(svg("rect", { width: "100%", height: "100%" }));
        item.prepend(key);
      }
      return item;
    });
    this.readout.replaceChildren(...items);
    const last = Math.max(0, this.points.length - 1);
    this.plot.setAttribute("aria-valuemax", last);
    this.plot.setAttribute("aria-valuenow", selected ? this.index : last);
    this.plot.setAttribute("aria-valuetext", texts.join(" "));
  }

  clock(point) {
    return date(this.step < 60 ? CLOCK : MINUTE, point.time);
  }

  select(time) {
    if (this.selected === time) return;
    this.selected = time;
    this.draw();
  }

  point(event) {
    if (!this.points.length) return;
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    const distance = (p) => Math.abs(this.x(p.time) - x);
    this.select(this.points.reduce((best, p) => (distance(p) < distance(best) ? p : best)).time);
  }

  key(event) {
    const last = this.points.length - 1;
    const at = this.index < 0 ? last + 1 : this.index;
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageUp: at + 10, PageDown: at - 10, Home: 0, End: last,
    }[event.key];
    if (event.key === "Escape") this.select(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.select(this.points[Math.min(Math.max(to, 0), last)].time);
  }

  // The table is the text of the chart. It is filled only while it is open.
  fillTable() {
    if (!this.details.open) return;
    const rows = [...this.points].reverse().map((p) => [
      { text: this.clock(p) },
      { text: percent(rateOf(p)) },
      ...[p.resumed, p.full, p.failed, p.hits, p.misses].map(exact),
    ]);
    fill(this.details.querySelector("table"), rows);
  }
}

const charts = { hour: new Chart("chart-hour", 120), day: new Chart("chart-day", 96) };

// ---- The snapshot ----

let snapshot = null;
let lastNews = 0;
const opened = Date.now();

// Counters of the last minute, for rates per second.
let recent = [];

function remember(s) {
  const { full = 0, resumed = 0, failed = 0 } = s.handshakes ?? {};
  const now = { time: s.time, started: s.started, full, resumed, failed, cpu: s.process?.cpu_seconds };
  if (recent.length && (recent[0].started !== now.started || recent[0].time > now.time)) recent = [];
  recent.push(now);
  while (now.time - recent[0].time > 60) recent.shift();
}

// The increase of a counter per second over the last minute, or NaN before the second snapshot.
function perSecond(field) {
  const [first, last] = [recent[0], recent.at(-1)];
  return (last[field] - first[field]) / (last.time - first.time);
}

function rate(value) {
  if (!Number.isFinite(value)) return { text: NONE };
  return { text: value > 0 && value < 10 ? value.toFixed(value < 0.1 ? 2 : 1) : count(value) };
}

const LEVELS = { __proto__: null, ok: "OK", warning: "Warning", critical: "Critical" };
const MARKS = {
  ok: ["M6 0a6 6 0 1 1 0 12A6 6 0 1 1 6 0zM2.6 6.2l2.5 2.6 4.5-4.9-1-1L5.1 6.8 3.6 5.2z", "#2e8b57"],
  warning: ["M6 .5 12 11.5H0zM5.3 4.2v3.6h1.4V4.2zM5.3 8.7v1.4h1.4V8.7z", "#c98a00"],
  critical: ["M3.5 0h5L12 3.5v5L8.5 12h-5L0 8.5v-5zM3 4.1 4.9 6 3 7.9 4.1 9 6 7.1 7.9 9 9 7.9 7.1 6 9 4.1 7.9 3 6 4.9 4.1 3z", "#d03a2f"],
  live: ["M6 1a5 5 0 1 1 0 10A5 5 0 1 1 6 1z", "#2e8b57"],
  lost: ["M6 0a6 6 0 1 1 0 12A6 6 0 1 1 6 0zM6 2a4 4 0 1 0 0 8A4 4 0 1 0 6 2z", "#8a8f96"],
};
const STATES = {
  __proto__: null,
  starting: "The daemon is starting.",
  draining: "The daemon is draining: it finishes running calls and takes no new ones.",
};

let level = "lost";
let announced = "";

function renderVerdict(s) {
  const rank = (finding) => Object.keys(LEVELS).indexOf(finding.level);
  const findings = [...list(s.verdict?.findings)].sort((a, b) => rank(b) - rank(a));
  level = LEVELS[s.verdict?.level] ? s.verdict.level : "warning";
  // A finding below a warning does not take the place of "All is well."
  const worst = level === "ok" ? null : findings.shift();
  const state = STATES[s.state] ?? "";
  byId("verdict").className = level;
  const sentence = worst?.text || (level === "ok" ? "All is well." : "The daemon reports a problem without details.");
  show(byId("headline"), name(sentence));
  show(byId("remedy"), name([state, worst?.remedy].filter(Boolean).join(" ")));
  const place = [LEVELS[level], worst?.name].filter(Boolean).join(": ");
  const more = findings.length ? `, and ${findings.length} other finding${findings.length > 1 ? "s" : ""}` : "";
  show(byId("level"), name(worst || findings.length ? place + more : ""));

  const items = byId("findings");
  items.hidden = !findings.length;
  while (items.children.length > findings.length) items.lastChild.remove();
  findings.forEach((finding, i) => {
    const item = items.children[i] ?? items.appendChild(make("li"));
    if (!item.firstChild) item.append(make("p", "level"), make("p", "text"), make("p"));
    show(item.children[0], name([LEVELS[finding.level], finding.name].filter(Boolean).join(": ")));
    show(item.children[1], name(finding.text));
    show(item.children[2], name(finding.remedy));
  });

  // Only a new level or another finding is announced, not each change of a number in the text.
  const key = `${level} ${worst?.name}`;
  if (announced && announced !== key) setText(byId("announcement"), `${LEVELS[level]}. ${sentence}`);
  announced = key;
}

function renderHandshakes(s) {
  const row = (title, kind) => [{ text: title }, exact(s.handshakes?.[kind]), rate(perSecond(kind))];
  table("handshakes", [row("Resumed", "resumed"), row("Full", "full"), row("Failed", "failed")]);

  const misses = list(s.lookups?.misses);
  const hits = s.lookups?.hits ?? 0;
  const missed = sum(misses, "count");
  const all = hits + missed;
  show(byId("lookups-sum"), {
    text: all ? `${count(hits)} hits and ${count(missed)} misses: ${percent(hits / all)} of the lookups hit.` : "No lookups since the daemon started.",
    bar: all ? hits / all : undefined,
  });
  table("misses", missed ? shares(misses, (m) => m.reason) : [], "No misses.");
  const failures = list(s.failures);
  table("failures", shares(failures, (f) => `${f.received ? "received" : "sent"} ${f.alert}`), "No failed handshakes.");
}

function renderNamed(s) {
  const hidden = s.names === false;
  const contexts = list(s.contexts).map((c, i) => [
    c.name ? name(c.name) : { text: `context ${i + 1}` },
    usage(c.sessions, c.sessions_max, count),
    usage(c.bytes, c.bytes_max, bytes),
    { text: rateText(c.resumed) },
  ]);
  table("contexts", contexts, "No contexts.");
  const sentence = (text) => (hidden ? "Names are hidden." : text);
  table("unclosed", shares(list(s.unclosed), (u) => u.owner), sentence("No unclosed connections."));
  table("connections", shares(list(s.connections), (c) => c.state), "No connections.");

  const certificates = [...list(s.certificates)]
    .sort((a, b) => a.expires - b.expires)
    .map((c) => {
      const left = c.expires - s.time;
      return [
        name(c.key),
        { text: left > 0 ? duration(left) : "expired", warn: left <= 0 },
        { text: date(DATE, c.expires), title: date(CLOCK, c.expires) },
      ];
    });
  table("certificates", certificates, sentence("No certificates are configured."));

  const rings = list(s.rings).map((r) => [
    name(r.name),
    { text: `${r.phase}, epoch ${r.epoch}`, title: `activated ${duration(r.age ?? 0)} ago` },
    {
      text: r.late ? `${r.members}, ${r.late} late` : count(r.members),
      title: `this daemon sealed ${count(r.sealed)} tickets and opened ${count(r.opened)}`,
      warn: r.late > 0,
    },
  ]);
  table("rings", rings, sentence("No ticket keys are configured."));
  const waits = list(s.rings).flatMap((r) =>
    list(r.waits).map((m) => [
      name(`${r.name}: ${m.name}`),
      { text: m.behind === null ? "-" : duration(m.behind) },
      {
        text: m.trouble || (m.late ? "late" : m.attached ? "acknowledges soon" : "not attached"),
        warn: m.late || m.trouble !== "",
      },
    ]),
  );
  table("waits", waits, sentence("No rotation waits."));

  const events = [...list(s.events)]
    .sort((a, b) => b.time - a.time)
    .slice(0, EVENTS)
    .map((e) => [
      { text: date(CLOCK, e.time), title: moment(e.time, s.time) },
      name(e.kind),
      name(e.text),
    ]);
  table("events", events, sentence("No events yet."));
}

function renderDaemon(s) {
  const store = s.store;
  describe("store", store
    ? [
        ["Address", store.address ? name(store.address) : { text: "hidden" }],
        ["Open parts", { ...usage(store.open_parts, store.parts, count), warn: store.open_parts < store.parts }],
        ["Requests", exact(store.requests)],
        ["Failures", exact(store.failures)],
      ]
    : [["State", { text: "not configured" }]]);

  const reload = s.reload;
  const result = reload && [
    ["Result", { text: reload.applied ? "applied" : "refused", warn: !reload.applied }],
    ["Time", { text: moment(reload.time, s.time) }],
    ["Age", { text: duration(s.time - reload.time) }],
  ];
  if (reload?.error) result.push(["Error", name(reload.error)]);
  describe("reload", result ?? [["State", { text: "no reload since the daemon started" }]]);

  const p = s.process ?? {};
  const load = perSecond("cpu");
  describe("process", [
    ["Memory", { text: bytes(p.memory_bytes), title: `${p.memory_bytes} bytes` }],
    ["CPU", { text: Number.isFinite(load) ? `${percent(load)} of one core` : NONE }],
    ["CPU time", { text: duration(p.cpu_seconds) }],
    ["Threads", exact(p.threads)],
    ["Open files", exact(p.open_files)],
    ["Sockets", usage(p.sockets, p.sockets_max, count)],
    ["Calls", usage(p.calls, p.calls_max, count)],
    ["Started", { text: moment(s.started, s.time) }],
    ["Build", name(s.build || NONE)],
  ]);
}

function render() {
  const s = snapshot;
  renderVerdict(s);
  setText(byId("facts"), [s.state, `up ${duration(s.time - s.started)}`, s.version].filter(Boolean).join(" · "));
  byId("note-names").hidden = s.names !== false;
  byId("content").hidden = false;
  for (const span of ["minute", "hour", "day"]) {
    const value = s.resumption?.[span];
    setText(byId(`rate-${span}`), rateText(value));
    byId(`rate-${span}`).classList.toggle("none", !Number.isFinite(value));
  }
  renderHandshakes(s);
  renderNamed(s);
  renderDaemon(s);
  for (const span in charts) {
    charts[span].now = s.time;
    charts[span].draw();
  }
}

// ---- The link to the daemon ----

let source = null;
let attempts = 0;
let attempted = 0;
let retryAt = 0;
let icon = "";

function renderLink() {
  const now = Date.now();
  const silence = now - (lastNews || opened);
  const lost = silence >= LOST_AFTER;
  document.documentElement.classList.toggle("lost", lost);
  let texts = ["Connecting to the daemon", "", ".", ""];
  if (lost) {
    const state = lastNews ? `The page shows the state of ${moment(snapshot.time, now / 1000)}.` : "The page has no state yet.";
    const wait = Math.ceil((retryAt - now) / 1000);
    const note = source ? "" : `Next attempt in ${duration(Math.max(1, wait))}.`;
    texts = ["No news from the daemon for ", duration(silence / 1000), `. ${state}`, note];
  } else if (lastNews) {
    texts = ["Live", "", "", `State of ${date(CLOCK, snapshot.time)}`];
  }
  ["status-text", "status-age", "status-end", "status-note"].forEach((id, i) => setText(byId(id), texts[i]));

  const shown = lost || !lastNews ? "lost" : level;
  byId("mark").firstElementChild.setAttribute("d", MARKS[shown][0]);
  byId("dot").firstElementChild.setAttribute("d", MARKS[lost ? "warning" : lastNews ? "live" : "lost"][0]);
  const headline = shown === "lost" ? (lost ? "No news from the daemon" : "") : byId("headline").textContent;
  document.title = [headline, location.host, "tls-sessiond"].filter(Boolean).join(" · ");
  if (icon !== shown) {
    icon = shown;
    const [path, colour] = MARKS[shown];
    const image = `<svg xmlns="${SVG}" viewBox="0 0 12 12"><path fill="${colour}" fill-rule="evenodd" d="${path}"/></svg>`;
    byId("icon").href = `data:image/svg+xml,${encodeURIComponent(image)}`;
  }
}

function receive(event, use) {
  try {
    use(JSON.parse(event.data));
  } catch (error) {
    // One event that the page cannot read must not stop the next one.
    console.error(error);
  }
}

function onHistory(history) {
  for (const span in charts) charts[span].reset(history[span], history.step_seconds[span]);
}

function onSnapshot(s) {
  snapshot = s;
  remember(s);
  for (const span in charts) {
    if (s.point?.[span]) charts[span].append(s.point[span]);
  }
  render();
  // Only a snapshot that the page could draw is news.
  lastNews = Date.now();
  attempts = 0;
  renderLink();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!still) byId("dot").animate([{ opacity: 0.4 }, { opacity: 1 }], 600);
}

function connect() {
  source?.close();
  attempted = Date.now();
  source = new EventSource("events");
  source.addEventListener("history", (event) => receive(event, onHistory));
  source.addEventListener("snapshot", (event) => receive(event, onSnapshot));
  source.addEventListener("error", disconnect);
}

// Closes the stream and waits before the next attempt: 1 s, 2 s, 4 s and so on, up to 15 s.
// A part of the wait is random, so that many pages do not return at the same moment.
function disconnect() {
  source?.close();
  source = null;
  const wait = Math.min(BACKOFF_FIRST * 2 ** attempts, BACKOFF_MAX);
  attempts += 1;
  retryAt = Date.now() + wait * (0.75 + Math.random() / 4);
  renderLink();
}

// A stream can stay open without news, so silence also ends it.
function check() {
  const now = Date.now();
  if (!source && now >= retryAt) connect();
  else if (source && now - Math.max(lastNews, attempted) >= RECONNECT_AFTER) disconnect();
  renderLink();
}

byId("host").textContent = location.host;
const zone = ZONE.formatToParts().find((p) => p.type === "timeZoneName").value.replace("GMT", "UTC");
byId("footer").textContent = `Times are in the time zone of this browser, ${zone}. The page updates itself every 2 seconds.`;
setInterval(check, 1000);
connect();
renderLink();
