// The data of the page, bytes and seconds as people write them, colours, and what several charts share.

const data = JSON.parse(document.getElementById("data").textContent);
const { ops, runs, buffers, strings } = data;
const runCount = runs.op.length;
const split = data.forward_length;

function most(numbers) {
  return numbers.reduce((a, b) => Math.max(a, b), 1);
}

const UNITS = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];

function unitOf(bytes) {
  return UNITS.find(([, size]) => Math.abs(bytes) >= size) || ["B", 1];
}

function formatBytes(bytes) {
  const [unit, size] = unitOf(bytes);
  return size === 1 ? `${bytes} B` : `${(bytes / size).toFixed(2)} ${unit}`;
}

function formatSeconds(seconds) {
  if (seconds === 0) return "0";
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  if (seconds >= 1e-3) return `${(seconds * 1e3).toFixed(2)} ms`;
  return seconds >= 1e-6 ? `${(seconds * 1e6).toFixed(1)} µs` : `${(seconds * 1e9).toFixed(1)} ns`;
}

function formatShare(part, whole) {
  return whole > 0 ? `${((100 * part) / whole).toFixed(1)}%` : "";
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function swatch(name) {
  const made = element("span", { className: "swatch" });
  made.style.background = `var(--${name})`;
  return made;
}

// Plotly reads some markup in its texts.
function plainText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function axis(options = {}) {
  const { title, ...others } = options;
  return {
    gridcolor: colour("line"),
    linecolor: colour("line"),
    zeroline: false,
    ...(title ? { title: { text: title, font: { size: 12, color: colour("soft") } } } : {}),
    ...others,
  };
}

function layoutOf(options) {
  return {
    paper_bgcolor: colour("page"),
    plot_bgcolor: colour("page"),
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    margin: { l: 62, r: 12, t: 10, b: 44 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
    hoverlabel: {
      bgcolor: colour("panel"), bordercolor: colour("line"),
      font: { color: colour("ink"), size: 12 }, align: "left",
    },
    uirevision: "kept",
    ...options,
  };
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

// A module's path, cut off below the depth that is shown; 0 is the whole path.
const depthChoice = document.getElementById("depth");

function cutModule(path, depth) {
  return depth ? path.split(".").slice(0, depth).join(".") : path;
}

function shownModule(path) {
  return cutModule(path, Number(depthChoice.value)) || "(no module)";
}

const deepest = most([...new Set(ops.module)].map((number) => strings[number].split(".").length));

function fillDepths() {
  depthChoice.append(element("option", { value: "0", textContent: "the op's own" }));
  for (let depth = 1; depth < deepest; depth += 1) {
    depthChoice.append(element("option", { value: String(depth), textContent: `level ${depth}` }));
  }
}

// (name, number) pairs of a Map, largest first.
function largest(map) {
  return [...map].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

function addTo(map, key, number) {
  map.set(key, (map.get(key) || 0) + number);
}

function showTiles() {
  document.getElementById("title").textContent = data.title;
  const tiles = [
    ["budget", data.budget_bytes === null ? "none" : formatBytes(data.budget_bytes), ""],
    ["planned peak", formatBytes(data.planned_peak_bytes), ""],
    ["saved", formatBytes(data.saved_bytes), `${data.saved_count} values`],
    ["run again", formatSeconds(data.recompute_seconds), `${data.recomputed_count} ops`],
    ["step", formatSeconds(data.step_seconds), "by the model"],
  ];
  if (data.generated_peak_bytes !== null) {
    tiles.splice(2, 0, ["peak of the code", formatBytes(data.generated_peak_bytes), ""]);
  }
  for (const [name, value, more] of tiles) {
    const told = element("dd", {}, value);
    if (more) told.append(" ", element("small", { textContent: more }));
    document.getElementById("tiles").append(element("div", {}, element("dt", { textContent: name }), told));
  }
}
