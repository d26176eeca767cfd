
"use strict";
// Every second: ask for what was counted since the start, and show what was added since the last time.
const EVERY_MS = 1000, KEPT = 120, WIDTH = 520, HEIGHT = 170, LEFT = 54, BOTTOM = 20, TOP = 8;
const CHARTS = [
  {title: "Latency", about: "of all requests, in this second", unit: "s", lines: [
    ["p50", now => quantile(now.requests, .5)], ["p95", now => quantile(now.requests, .95)],
    ["p99", now => quantile(now.requests, .99)]]},
  {title: "A model call", about: "where its time goes, on average", unit: "s", stacked: true, lines: [
    ["waiting", now => mean(now.stages.waiting)], ["running", now => mean(now.stages.running)],
    ["encoding", now => mean(now.stages.encoding)]]},
  {title: "An item of a batch", about: "where its time goes, on average", unit: "s", stacked: true, optional: true, lines: [
    ["waiting", now => mean(now.stages.lingering)], ["running", now => mean(now.stages.batch)]]},
  {title: "Batch size", about: "items, on average", unit: "", optional: true, lines: [
    ["items", now => mean(now.stages.batch_size)]]},
  {title: "Queue", about: "model calls and batches", unit: "", lines: [
    ["waiting", now => now.waiting], ["running", now => now.running]]},
  {title: "Garbage collection and event-loop lag", about: "milliseconds lost per second", unit: "s", lines: [
    ["collections in requests", now => now.lost.collecting], ["lag by collections", now => now.lost.lag_collecting],
    ["lag by anything else", now => now.lost.lag_other]]},
];
const TILES = [
  ["Requests per second", now => plain(now.requests.rate)],
  ["p50", now => seconds(quantile(now.requests, .5))],
  ["p99", now => seconds(quantile(now.requests, .99))],
  ["Errors", now => now.requests.count ? [(100 * now.requests.failed / now.requests.count).toFixed(1), "%"] : ["–"]],
  ["In flight", now => plain(now.active)],
  ["Memory", now => now.rss ? [(now.rss / 2 ** 20).toFixed(0), "MiB"] : null],
];

const make = (name, attributes = {}, ...children) => {
  const svg = ["svg", "path", "line", "text"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};
const byId = id => document.getElementById(id);

const added = (now, before, elapsed) => ({
  le: now.le, sum: now.sum - before.sum, count: now.count - before.count, rate: (now.count - before.count) / elapsed,
  failed: (now.failed || 0) - (before.failed || 0), counts: now.counts.map((count, n) => count - (before.counts[n] || 0)),
});
const nothing = {sum: 0, count: 0, counts: []};
const mean = histogram => histogram && histogram.count ? histogram.sum / histogram.count : null;
const quantile = (histogram, share) => {
  if (!histogram.count) return null;
  const rank = share * histogram.count, at = histogram.counts.findIndex(count => count >= rank);
  if (at < 0) return histogram.le.at(-1);
  const low = at ? histogram.le[at - 1] : 0, below = at ? histogram.counts[at - 1] : 0;
  return low + (histogram.le[at] - low) * (rank - below) / (histogram.counts[at] - below);
};
const total = objects => objects.reduce((sum, each) => sum + each, 0);

const compare = (now, before) => {
  const elapsed = now.at - before.at, pools = Object.values(now.pools);
  const stages = Object.fromEntries(Object.entries(now.stages).map(
    ([name, stage]) => [name, added(stage, before.stages[name] || nothing, elapsed)]));
  return {
    ...now, stages, requests: added(now.requests, before.requests, elapsed),
    routes: Object.fromEntries(Object.entries(now.routes).map(
      ([route, each]) => [route, added(each, before.routes[route] || nothing, elapsed)])),
    refused: Object.fromEntries(Object.entries(now.pools).map(
      ([name, pool]) => [name, (pool.refused - (before.pools[name] || pool).refused) / elapsed])),
    lost: Object.fromEntries(Object.entries(stages).map(([name, stage]) => [name, stage.sum / elapsed])),
    waiting: total(pools.map(pool => pool.waiting)), running: total(pools.map(pool => pool.running)),
  };
};

const seconds = value => {
  if (value === null || value === undefined) return ["–"];
  if (value === 0) return ["0", "ms"];
  if (value >= 1) return [value.toFixed(2), "s"];
  return [(value * 1000).toFixed(value >= .1 ? 0 : value >= .01 ? 1 : 2), "ms"];
};
const plain = value => [value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1)];
const written = (value, unit) => value === null || value === undefined ? "–"
  : (unit === "s" ? seconds(value) : plain(value)).join(" ");
const ceiling = value => {
  if (!(value > 0)) return 1e-3;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].find(step => step * power >= value * .999) * power;
};

const charts = CHARTS.map(chart => {
  const plot = make("svg", {class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img"});
  const legend = make("ul"), about = make("p", {}, chart.about);
  const section = make("section", {}, make("h2", {}, chart.title), about, plot, legend);
  byId("charts").append(section);
  return {...chart, section, plot, legend};
});
const tiles = TILES.map(([name, value]) => {
  const figure = make("dd", {}, "–"), tile = make("div", {}, make("dt", {}, name), figure);
  byId("tiles").append(tile);
  return {value, figure, tile};
});

const x = n => LEFT + (WIDTH - LEFT) * (n + KEPT - 1) / (KEPT - 1);
const frame = (chart, top) => {
  const y = value => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const unit = chart.unit || (top < 4 ? "few" : "");
  for (const part of unit === "few" ? [0, 1] : [0, .5, 1]) {
    const at = y(part * top);
    chart.plot.append(make("line", {class: "grid", x1: LEFT, x2: WIDTH, y1: at, y2: at}),
      make("text", {x: LEFT - 8, y: at + 4, "text-anchor": "end"}, written(part * top, chart.unit).replace(/\.0+(?= |$)/, "")));
  }
  chart.plot.append(make("text", {x: LEFT, y: HEIGHT - 2}, `${KEPT * EVERY_MS / 60000} min ago`),
    make("text", {x: WIDTH, y: HEIGHT - 2, "text-anchor": "end"}, "now"));
  return y;
};
const path = (points, y) => {
  let drawn = "", open = false;
  points.forEach((value, n) => {
    if (value === null || value === undefined) { open = false; return; }
    drawn += `${open ? "L" : "M"}${x(n + 1 - points.length).toFixed(1)} ${y(value).toFixed(1)}`;
    open = true;
  });
  return drawn;
};
const band = (upper, lower, y) => {
  const there = (points, reverse) => {
    const placed = points.map((value, n) => `${x(n + 1 - points.length).toFixed(1)} ${y(value).toFixed(1)}`);
    return (reverse ? placed.reverse() : placed).join("L");
  };
  return `M${there(upper)}L${there(lower, true)}Z`;
};
const draw = (chart, history) => {
  const lines = chart.lines.map(([name, value]) => ({name, points: history.map(value)}))
    .filter(line => line.points.some(value => value !== null && value !== undefined));
  chart.section.hidden = chart.optional && !lines.length;
  const sums = history.map((_, n) => total(lines.map(line => line.points[n] || 0)));
  const most = chart.stacked ? Math.max(...sums) : Math.max(0, ...lines.flatMap(line => line.points.map(value => value || 0)));
  chart.plot.replaceChildren();
  const y = frame(chart, chart.unit ? ceiling(most) : Math.max(1, ceiling(most)));
  let lower = history.map(() => 0);
  lines.forEach((line, n) => {
    if (!chart.stacked) {
      chart.plot.append(make("path", {class: `s${n} line`, d: path(line.points, y)}));
      return;
    }
    const upper = line.points.map((value, at) => lower[at] + (value || 0));
    chart.plot.append(make("path", {class: `s${n} area`, d: band(upper, lower, y)}));
    lower = upper;
  });
  const last = lines.map(line => `${line.name} ${written(line.points.at(-1), chart.unit)}`);
  chart.plot.setAttribute("aria-label", `${chart.title}, now: ${last.join(", ") || "nothing measured yet"}`);
  chart.legend.replaceChildren(...lines.map((line, n) => make("li", {},
    make("svg", {class: `s${n}`, width: 22, height: 10, "aria-hidden": "true"},
      make("path", chart.stacked ? {class: "area", d: "M0 0H22V10H0Z"} : {class: "line", d: "M0 5H22"})),
    `${line.name} `, make("b", {}, written(line.points.at(-1), chart.unit)))));
};

const rows = (id, entries) => byId(id).replaceChildren(...entries.map(([name, ...cells]) =>
  make("tr", {}, make("th", {scope: "row"}, name), ...cells.map(cell => make("td", {}, cell)))));
const show = (now, history) => {
  tiles.forEach(({value, figure, tile}) => {
    const shown = value(now);
    tile.hidden = !shown;
    if (shown) figure.replaceChildren(shown[0], ...(shown[1] ? [make("small", {}, shown[1])] : []));
  });
  charts.forEach(chart => draw(chart, history));
  rows("routes", Object.entries(now.routes).map(([route, each]) => [route || "(no route)", written(each.rate, ""),
    written(quantile(each, .5), "s"), written(quantile(each, .99), "s")]));
  rows("pools", Object.entries(now.pools).map(([name, pool]) => [name, written(pool.waiting, ""),
    written(pool.running, ""), written(now.refused[name], "")]));
};
const tell = (kind, text) => {
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
  byId("state").className = kind;
};

const workers = new Map();  // connections move between worker processes, and counts belong to one
const poll = async () => {
  try {
    const response = await fetch(`${location.origin}${location.pathname.replace(/\/+$/, "")}/data`, {cache: "no-store"});
    if (!response.ok) throw new Error(`the worker answered ${response.status}`);
    const now = await response.json(), worker = workers.get(now.worker) || {history: []};
    workers.set(now.worker, worker);
    if (worker.before && now.at > worker.before.at) {
      const compared = compare(now, worker.before);
      worker.history = [...worker.history, compared].slice(-KEPT);
      show(compared, worker.history);
    }
    worker.before = now;
    byId("worker").textContent = `worker ${now.worker}` + (workers.size > 1 ? `, one of ${workers.size} seen` : "");
    tell(now.reasons.length ? "bad" : "good", now.reasons.length ? `not ready: ${now.reasons.join("; ")}` : "ready");
  } catch (error) {
    tell("bad", `no figures: ${error.message}`);
  }
};
const tick = async () => {
  if (!document.hidden) await poll();
  setTimeout(tick, EVERY_MS);
};
tick();
