// The graph of ops: runs in the order of the plan, edges from what they read, and what is known of one run.

const MOST_LABELS = 36;
const LABEL_ABOVE = 0.2; // of a lane
const MARGIN = 0.04; // of the width of the whole graph
const BAND_WIDTH = 90; // pixels: with less for a module on average, only its parents are named
const LETTER_WIDTH = 7; // pixels
const graphWidth = most(runs.x);
const graphTop = most(runs.y);
const graphChart = document.getElementById("graph");
const opPanel = document.getElementById("op");
const readers = runs.op.map(() => []);
runs.reads.forEach((reads, position) => reads.forEach((read) => readers[read].push(position)));
const fateNumber = Object.fromEntries(data.fates.map(([key], number) => [key, number]));
let keptRun = null;
let traceOf = {};

function webgl() {
  return Boolean(document.createElement("canvas").getContext("webgl"));
}

const SCATTER = webgl() ? "scattergl" : "scatter";

function edges(wanted, name, line) {
  const x = [];
  const y = [];
  runs.reads.forEach((reads, position) => reads.forEach((read) => {
    if (!wanted(read, position)) return;
    x.push(runs.x[read], runs.x[position], null);
    y.push(runs.y[read], runs.y[position], null);
  }));
  return { type: SCATTER, mode: "lines", x, y, name, line, hoverinfo: "skip", connectgaps: false };
}

function runText(position) {
  const op = runs.op[position];
  return [
    `<b>${plainText(ops.name[op])}</b>  ${plainText(strings[ops.target[op]])}`,
    `${plainText(strings[ops.label[op]])}  ${formatBytes(ops.bytes[op])}`,
    plainText(strings[ops.module[op]]),
  ].filter((line) => line.trim()).join("<br>");
}

function nodes(fate) {
  const [key, name] = data.fates[fate];
  const own = runs.op.map((_, position) => position).filter((position) => runs.fate[position] === fate);
  const quiet = key === "view" || key === "plain";
  return {
    type: SCATTER, mode: "markers", name, customdata: own, text: own.map(runText),
    x: own.map((position) => runs.x[position]), y: own.map((position) => runs.y[position]),
    hovertemplate: "%{text}<extra></extra>", showlegend: own.length > 0,
    marker: { color: colour(key), size: key === "view" ? 4 : quiet ? 6 : 9 },
  };
}

function marked() {
  const own = keptRun === null ? [] : [keptRun];
  return {
    type: SCATTER, mode: "markers", showlegend: false, hoverinfo: "skip",
    x: own.map((position) => runs.x[position]), y: own.map((position) => runs.y[position]),
    marker: { color: "rgba(0,0,0,0)", size: 17, line: { color: colour("ink"), width: 2 } },
  };
}

function names(key, textposition) {
  return {
    type: SCATTER, mode: "text", x: [], y: [], text: [], textposition, hoverinfo: "skip", showlegend: false,
    textfont: { size: 11, color: colour(key) },
  };
}

function edgesOfBands() {
  return {
    type: SCATTER, mode: "lines", x: [], y: [], hoverinfo: "skip", showlegend: false, connectgaps: false,
    line: { color: colour("plain"), width: 1 },
  };
}

// Every stretch of the forward that is of one module, cut off at a depth: its first place, the place behind it, and the
// module. An op of no module goes with the one before it.
function bandsAt(depth) {
  const found = [];
  for (let position = 0; position < split; position += 1) {
    const module = cutModule(strings[ops.module[runs.op[position]]], depth);
    const last = found[found.length - 1];
    if (!module || (last && last.module === module)) continue;
    if (last) last.end = position - 0.5;
    found.push({ start: position - 0.5, end: split - 0.5, module });
  }
  return found;
}

const bandsOfDepth = [];
for (let depth = 1; depth <= deepest; depth += 1) bandsOfDepth.push(bandsAt(depth));

// The modules of the forward that is in sight, as deep as there is room for their names.
function nameBands() {
  const [from, to] = graphChart.layout.xaxis.range;
  const pixels = graphChart.clientWidth / (to - from);
  const seen = bandsOfDepth.map((bands) => bands.filter(({ start, end }) => start <= to && end > from));
  const fitting = seen.filter((bands) => bands.length * BAND_WIDTH <= graphChart.clientWidth);
  const own = fitting[fitting.length - 1] || [];
  const named = own.filter(({ start, end, module }) => (
    (Math.min(end, to) - Math.max(start, from)) * pixels > LETTER_WIDTH * module.length
  ));
  const y = graphTop + 1.3;
  Plotly.restyle(graphChart, {
    x: [own.flatMap(({ start }) => [start, start, null]), named.map(({ start }) => Math.max(start, from))],
    y: [own.flatMap(() => [y - 0.5, y + 0.5, null]), named.map(() => y)],
    text: [null, named.map(({ module }) => `\u00a0${plainText(module)}`)],
  }, [traceOf.borders, traceOf.bands]);
}

function wholeRange() {
  return [-MARGIN * graphWidth, (1 + MARGIN) * graphWidth];
}

// So narrow that the ops in it are named.
function rangeAround(position) {
  const half = (0.5 * MOST_LABELS * graphWidth) / Math.max(1, runCount);
  return [runs.x[position] - half, runs.x[position] + half];
}

function drawGraph() {
  const across = (read, position) => read < split && position >= split;
  const order = ["view", "plain", "outputs", "gradients", "dropped", "again", "saved"];
  const traces = [
    edges((r, p) => !across(r, p), "reads", { color: colour("edge"), width: 1 }),
    edges(across, "reads what is saved", { color: colour("saved"), width: 0.7 }),
    ...order.map((key) => nodes(fateNumber[key])),
    edgesOfBands(),
    names("soft", "middle right"),
    marked(),
    names("ink", "top center"),
  ];
  traces[0].showlegend = false;
  const last = traces.length - 1;
  traceOf = { borders: last - 3, bands: last - 2, marked: last - 1, labels: last };
  const low = -most(runs.y.map((y) => -y));
  const side = (y, yanchor, text) => ({
    x: 0, xref: "paper", xanchor: "right", y, yanchor, text, showarrow: false, xshift: -8,
    font: { size: 12, color: colour("soft") },
  });
  const hidden = { showgrid: false, showline: false, showticklabels: false, ticks: "" };
  Plotly.react(graphChart, traces, layoutOf({
    hovermode: "closest", dragmode: "pan", margin: { l: 92, r: 8, t: 8, b: 8 },
    xaxis: axis({ ...hidden, range: wholeRange() }),
    yaxis: axis({ ...hidden, fixedrange: true, range: [low - 1, graphTop + 3.4] }),
    legend: { orientation: "h", y: 1, yanchor: "top", x: 1, xanchor: "right", font: { size: 12 } },
    shapes: [{ type: "line", x0: -1, x1: 1, xref: "paper", y0: 0, y1: 0, line: { color: colour("line"), width: 1 } }],
    annotations: [side(0, "bottom", "forward →"), side(0, "top", "← backward")],
  }), { ...CONFIG, scrollZoom: true });
}

// Names stand at the ops once few enough are in sight.
function labelRuns() {
  const [from, to] = graphChart.layout.xaxis.range;
  const seen = [];
  for (let position = 0; position < runCount && seen.length <= MOST_LABELS; position += 1) {
    const inside = from <= runs.x[position] && runs.x[position] <= to;
    if (inside && runs.fate[position] !== fateNumber.view) seen.push(position);
  }
  const own = seen.length <= MOST_LABELS ? seen : [];
  Plotly.restyle(graphChart, {
    x: [own.map((position) => runs.x[position])], y: [own.map((position) => runs.y[position] + LABEL_ABOVE)],
    text: [own.map((position) => plainText(ops.name[runs.op[position]]))],
  }, [traceOf.labels]);
}

function showNames() {
  labelRuns();
  nameBands();
}

function showRun(position) {
  const op = runs.op[position];
  const named = (positions) => {
    const names = [...new Set(positions.map((other) => ops.name[runs.op[other]]))];
    return names.slice(0, 8).join(", ") + (names.length > 8 ? `, ${names.length - 8} others` : "");
  };
  const [key, fate] = data.fates[runs.fate[position]];
  const head = element("div", { className: "soft" }, fate);
  head.prepend(swatch(key), " ");
  head.firstChild.style.display = "inline-block";
  const facts = [
    ["why", strings[runs.why[position]]],
    ["op", `${strings[ops.target[op]]} (${strings[ops.kind[op]]})`],
    ["value", strings[ops.label[op]]],
    ["bytes", formatBytes(ops.bytes[op])],
    ["seconds of this run", formatSeconds(runs.seconds[position])],
    ["module", strings[ops.module[op]]],
    ["source line", strings[ops.source[op]]],
    ["reads", named(runs.reads[position])],
    ["read by", named(readers[position])],
    ["runs", momentText(position)],
  ].filter(([, text]) => text);
  opPanel.replaceChildren(
    element("h3", { textContent: ops.name[op] }), head,
    element("dl", {}, ...facts.flatMap(([name, text]) => [
      element("dt", { textContent: name }), element("dd", { textContent: text }),
    ])),
  );
  opPanel.dataset.position = position;
}

function keepRun(position) {
  keptRun = position;
  showRun(position);
  Plotly.restyle(graphChart, { x: [[runs.x[position]]], y: [[runs.y[position]]] }, [traceOf.marked]);
}

function findRuns(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return [];
  const matching = (test) => runs.op.map((_, position) => position).filter((position) => test(runs.op[position]));
  const exact = matching((op) => ops.name[op].toLowerCase() === wanted);
  return exact.length ? exact : matching((op) => ops.name[op].toLowerCase().includes(wanted)
    || strings[ops.module[op]].toLowerCase().includes(wanted));
}

function startGraph() {
  drawGraph();
  graphChart.on("plotly_hover", ({ points }) => {
    if (keptRun === null && points[0].customdata !== undefined) showRun(points[0].customdata);
  });
  graphChart.on("plotly_click", ({ points }) => keepRun(points[0].customdata));
  graphChart.on("plotly_doubleclick", () => { keptRun = null; });
  graphChart.on("plotly_relayout", showNames);
  const output = document.getElementById("found");
  let last = "";
  let turn = 0;
  document.getElementById("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = document.getElementById("wanted").value;
    turn = text === last ? turn + 1 : 0;
    last = text;
    const found = findRuns(text);
    output.textContent = found.length ? `${(turn % found.length) + 1} of ${found.length} runs` : "no such op";
    if (!found.length) return;
    const position = found[turn % found.length];
    keepRun(position);
    Plotly.relayout(graphChart, { "xaxis.range": rangeAround(position) });
  });
  document.getElementById("whole").addEventListener("click", () => {
    Plotly.relayout(graphChart, { "xaxis.range": wholeRange() });
  });
  const first = runs.fate.indexOf(fateNumber.saved);
  if (runCount) showRun(first < 0 ? 0 : first);
  showNames();
}
