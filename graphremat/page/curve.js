// The bytes alive over the step, stacked by what they are held for, and what is alive at one moment.

const MOST_SHOWN = 5;
const heldNumber = Object.fromEntries(data.held.map(([key], number) => [key, number]));
const curveChart = document.getElementById("curve");
const alivePanel = document.getElementById("alive");
let keptPosition = null;

function fixedBytes(held, position) {
  const key = data.held[held][0];
  if (key === "inputs") return data.input_bytes;
  if (key === "outside") return data.outside_bytes;
  if (key === "outputs") return position >= split ? data.engine_bytes : 0;
  return key === "temporaries" ? ops.scratch_bytes[runs.op[position]] : 0;
}

// For every kind of holding, the bytes at every position.
function curvesByHeld() {
  const moments = runCount ? runs.moment[runCount - 1] + 1 : 0;
  return data.held.map((_, held) => {
    const change = new Float64Array(moments + 1);
    buffers.bytes.forEach((size, buffer) => {
      if (buffers.held[buffer] !== held) return;
      change[buffers.from[buffer]] += size;
      change[buffers.to[buffer] + 1] -= size;
    });
    for (let moment = 1; moment < moments; moment += 1) change[moment] += change[moment - 1];
    return runs.moment.map((moment, position) => change[moment] + fixedBytes(held, position));
  });
}

function aliveAt(position) {
  const moment = runs.moment[position];
  const alive = [];
  buffers.bytes.forEach((size, buffer) => {
    if (size && buffers.from[buffer] <= moment && moment <= buffers.to[buffer]) alive.push(buffer);
  });
  return alive;
}

function momentText(position) {
  const half = position < split ? "forward" : "backward";
  return `${half}, op ${position + 1} of ${runCount}`;
}

function showAlive(position) {
  if (!runCount) return;
  const byHeld = data.held.map((_, held) => fixedBytes(held, position));
  const byModule = new Map();
  const values = new Map();
  for (const buffer of aliveAt(position)) {
    const op = runs.op[buffers.position[buffer]];
    byHeld[buffers.held[buffer]] += buffers.bytes[buffer];
    addTo(byModule, shownModule(strings[ops.module[op]]), buffers.bytes[buffer]);
    addTo(values, buffers.name[buffer], buffers.bytes[buffer]);
  }
  const total = byHeld.reduce((sum, size) => sum + size, 0);
  const list = (title, rows) => [
    element("h4", { textContent: title }),
    element("ul", {}, ...rows.map(([name, size, key]) => element(
      "li", {}, ...(key ? [swatch(key)] : []),
      element("span", { textContent: name, title: name }), element("span", { textContent: formatBytes(size) }),
    ))),
  ];
  const cut = (map) => {
    const rows = largest(map);
    const rest = rows.slice(MOST_SHOWN).reduce((sum, [, size]) => sum + size, 0);
    return rest ? [...rows.slice(0, MOST_SHOWN), [`${rows.length - MOST_SHOWN} others`, rest]] : rows;
  };
  const held = data.held.map(([key, name], number) => [name, byHeld[number], key]).filter(([, size]) => size);
  alivePanel.replaceChildren(
    element("h3", { textContent: ops.name[runs.op[position]] }),
    element("div", { className: "soft", textContent: momentText(position) }),
    element("div", { className: "soft", textContent: strings[ops.module[runs.op[position]]] }),
    element("div", { className: "sum", textContent: formatBytes(total) }),
    ...list("held as", held.reverse()),
    ...list("of the graph, by module", cut(byModule)),
    ...list("largest values", cut(values)),
  );
  alivePanel.dataset.position = position;
  alivePanel.dataset.bytes = total;
}

// The generated code has events of its own: each half is laid over the same half of the plan.
function generatedTrace(unitSize) {
  const { forward, backward } = data.generated_curve;
  const x = [];
  const y = [];
  const lay = (sizes, from, length) => sizes.forEach((size, event) => {
    x.push(from + (length * event) / Math.max(1, sizes.length));
    y.push(size / unitSize);
  });
  lay(forward, 0, split);
  lay(backward, split, runCount - split);
  return {
    x, y, name: "code that runs, by events", mode: "lines", hoverinfo: "skip",
    line: { color: colour("ink"), width: 1, dash: "dot" },
  };
}

function drawCurve() {
  const [unit, unitSize] = unitOf(data.planned_peak_bytes);
  const x = runs.op.map((_, position) => position);
  const curves = curvesByHeld();
  const traces = data.held.map(([key, name], held) => ({
    x, y: curves[held].map((size) => size / unitSize), name, stackgroup: "alive", mode: "lines",
    line: { width: 0, shape: "hv" }, fillcolor: colour(key), hoverinfo: "none",
    showlegend: curves[held].some((size) => size > 0),
  }));
  if (data.generated_curve.backward.length) traces.push(generatedTrace(unitSize));
  const dashed = { color: colour("budget"), width: 1.2, dash: "dash" };
  const annotations = [{
    x: data.peak_position, y: data.planned_peak_bytes / unitSize, text: "peak", ax: 0, ay: -16,
    font: { size: 12 }, arrowcolor: colour("soft"), arrowwidth: 1, arrowhead: 0,
  }];
  const shapes = [{
    type: "line", x0: split - 0.5, x1: split - 0.5, y0: 0, y1: 1, yref: "paper",
    line: { color: colour("soft"), width: 1 },
  }];
  const top = Math.max(data.planned_peak_bytes, data.generated_peak_bytes || 0) / unitSize;
  const budget = data.budget_bytes === null ? Infinity : data.budget_bytes / unitSize;
  if (budget < 2 * top) {
    shapes.push({ type: "line", x0: 0, x1: 1, xref: "paper", y0: budget, y1: budget, line: dashed });
    annotations.push({
      x: 1, xref: "paper", xanchor: "right", y: budget, yanchor: "bottom", text: "budget", showarrow: false,
      font: { size: 12, color: colour("budget") },
    });
  }
  Plotly.react(curveChart, traces, layoutOf({
    hovermode: "x",
    xaxis: axis({
      range: [0, Math.max(1, runCount - 1)], showgrid: false,
      tickvals: [split / 2, split + (runCount - split) / 2], ticktext: ["forward", "backward"],
      showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid",
      spikecolor: colour("ink"), spikesnap: "hovered data",
    }),
    yaxis: axis({ title: `alive, ${unit}`, range: [0, 1.1 * Math.max(top, budget < 2 * top ? budget : 0)] }),
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "reversed" },
    shapes, annotations,
  }), CONFIG);
}

function startCurve() {
  drawCurve();
  curveChart.on("plotly_hover", ({ points }) => {
    if (keptPosition === null) showAlive(points[0].x);
  });
  curveChart.on("plotly_click", ({ points }) => {
    keptPosition = keptPosition === null ? points[0].x : null;
    showAlive(points[0].x);
  });
  showAlive(data.peak_position);
}
