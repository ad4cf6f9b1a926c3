// The frontier, the plan against the truth, and the table by module.

const TORCHS = "torch's own plan";

function drawFrontier() {
  const fastest = Math.min(...data.points.map((point) => point.step_seconds));
  const frontier = data.points.slice(0, data.on_frontier);
  const others = data.points.slice(data.on_frontier);
  const peaks = data.points.map((point) => point.planned_peak_bytes);
  const [unit, unitSize] = unitOf(Math.max(...peaks, 1));
  const added = data.points.map((point) => point.step_seconds - fastest);
  const inSeconds = Math.max(...added, 0) >= 1;
  const perSecond = inSeconds ? 1 : 1e3;
  const told = (point) => [
    plainText(point.origin),
    `peak ${formatBytes(point.planned_peak_bytes)} planned`,
    ...(point.generated_peak_bytes === null ? [] : [`peak ${formatBytes(point.generated_peak_bytes)} of the code`]),
    `saved ${formatBytes(point.saved_bytes)}`,
    `${formatSeconds(point.recomputed_seconds)} run again`,
    `step ${formatSeconds(point.step_seconds)}, ${formatShare(point.step_seconds - fastest, fastest)} added`,
  ].join("<br>");
  const trace = (points, name, marker, more = {}) => ({
    x: points.map((point) => point.planned_peak_bytes / unitSize),
    y: points.map((point) => (point.step_seconds - fastest) * perSecond),
    text: points.map(told), hovertemplate: "%{text}<extra></extra>", name, mode: "markers", marker, cliponaxis: false,
    ...more,
  });
  const traces = [];
  if (others.length) {
    const visible = data.chosen >= data.on_frontier ? true : "legendonly";
    traces.push(trace(others, "plans that save less", { color: colour("plain"), size: 6 }, { visible }));
  }
  traces.push(trace(frontier, "frontier", { color: colour("saved"), size: 6 }, {
    mode: "lines+markers", line: { color: colour("saved"), width: 1.5, shape: "vh" },
  }));
  if (data.torchs) {
    traces.push(trace([data.torchs], TORCHS, {
      symbol: "square-open", color: colour("ink"), size: 12, line: { width: 2 },
    }));
  }
  if (data.points[data.chosen]) {
    traces.push(trace([data.points[data.chosen]], "the chosen plan", {
      symbol: "diamond", color: colour("again"), size: 13, line: { color: colour("page"), width: 1.5 },
    }));
  }
  const shapes = [];
  const annotations = [];
  if (data.budget_bytes !== null && data.budget_bytes <= 1.2 * Math.max(...peaks)) {
    const x = data.budget_bytes / unitSize;
    const line = { color: colour("budget"), width: 1.2, dash: "dash" };
    shapes.push({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line });
    annotations.push({
      x, y: 1, yref: "paper", text: "budget", showarrow: false, xanchor: "left", xshift: 4,
      font: { size: 12, color: colour("budget") },
    });
  }
  Plotly.react("frontier", traces, layoutOf({
    hovermode: "closest",
    xaxis: axis({ title: `planned peak, ${unit}` }),
    yaxis: axis({ title: `added to the fastest step, ${inSeconds ? "s" : "ms"}`, rangemode: "tozero" }),
    shapes, annotations,
  }), CONFIG);
}

function showTruth() {
  const { truth } = data;
  const off = (planned, measured) => {
    if (!measured) return "";
    const share = (100 * (planned - measured)) / measured;
    return `${share >= 0 ? "+" : ""}${share.toFixed(1)}%`;
  };
  const peaks = [["planned peak", data.planned_peak_bytes, "saved"]];
  if (data.generated_peak_bytes !== null) peaks.push(["peak of the code", data.generated_peak_bytes, "plain"]);
  if (truth && truth.peak_bytes !== null) peaks.push(["measured peak", truth.peak_bytes, "gradients"]);
  const real = peaks[peaks.length - 1][1];
  if (data.budget_bytes !== null) peaks.push(["budget", data.budget_bytes, "budget"]);
  if (data.torchs) peaks.push([`${TORCHS}, planned`, data.torchs.planned_peak_bytes, "view"]);
  const most = Math.max(...peaks.map(([, size]) => size), 1);
  const row = (name, cells) => element("tr", {}, element("td", { textContent: name }), ...cells);
  const cell = (text) => element("td", { textContent: text });
  const rows = peaks.map(([name, size, key], place) => {
    const bar = element("span", { className: "bar" });
    bar.style.cssText = `width: ${((62 * size) / most).toFixed(1)}%; background: var(--${key})`;
    const compared = place === 0 && peaks[0][1] !== undefined && real !== undefined && data.generated_peak_bytes !== null;
    return row(name, [element("td", {}, bar, formatBytes(size)), cell(compared ? off(size, real) : "")]);
  });
  if (truth) {
    rows.push(
      row("step", [cell(`${formatSeconds(truth.planned_step_seconds)} planned, ${formatSeconds(truth.step_seconds)} `
        + `measured, of it ${formatSeconds(truth.call_seconds)} in kernels`),
      cell(off(truth.planned_step_seconds, truth.call_seconds))]),
      row("run again", [cell(`${formatSeconds(truth.planned_recomputed_seconds)} planned, `
        + `${formatSeconds(truth.recomputed_seconds)} measured`),
      cell(off(truth.planned_recomputed_seconds, truth.recomputed_seconds))]),
    );
  }
  const heads = ["", "", "plan is off by"].map((text) => element("th", { textContent: text }));
  document.getElementById("truth").append(
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows),
  );
  const notes = [];
  if (data.unfollowed) notes.push(`The code could not be followed, its peak is the planner's: ${data.unfollowed}.`);
  if (data.generated_peak_bytes === null) notes.push("Nothing was generated: the peak is the planner's replay.");
  if (!truth) notes.push("Nothing was measured; the option profile measures real steps.");
  else if (truth.peak_bytes === null) notes.push("The measured steps' peak could not be followed.");
  document.getElementById("truth-note").textContent = notes.join(" ");
}

const COLUMNS = [
  ["module", "module", (value) => value],
  ["saved_bytes", "saved", formatBytes],
  ["saved_share", "of all saved", null],
  ["saved_count", "values", String],
  ["recompute_seconds", "run again", formatSeconds],
  ["recompute_share", "of all run again", null],
  ["recomputed_count", "ops", String],
];
let sorting = { column: "saved_bytes", ascending: false };

function moduleRows() {
  const rows = new Map();
  data.modules.module.forEach((path, place) => {
    const module = shownModule(path);
    const row = rows.get(module)
      || { module, saved_bytes: 0, saved_count: 0, recompute_seconds: 0, recomputed_count: 0 };
    for (const key of ["saved_bytes", "saved_count", "recompute_seconds", "recomputed_count"]) {
      row[key] += data.modules[key][place];
    }
    rows.set(module, row);
  });
  const found = [...rows.values()];
  for (const row of found) {
    row.saved_share = row.saved_bytes / (data.saved_bytes || 1);
    row.recompute_share = row.recompute_seconds / (data.recompute_seconds || 1);
  }
  return found;
}

function showModules() {
  const { column, ascending } = sorting;
  const compare = (a, b) => (a < b ? -1 : Number(a > b));
  const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });
  const rows = moduleRows().sort((a, b) => {
    const order = column === "module" ? natural(a.module, b.module) : compare(a[column], b[column]);
    return (ascending ? order : -order) || natural(a.module, b.module);
  });
  const heads = COLUMNS.map(([key, title]) => {
    const button = element("button", { type: "button", textContent: title });
    button.addEventListener("click", () => {
      sorting = { column: key, ascending: column === key ? !ascending : key === "module" };
      showModules();
    });
    const head = element("th", { scope: "col" }, button);
    head.dataset.column = key;
    if (key === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    return head;
  });
  const lines = rows.map((row) => element("tr", {}, ...COLUMNS.map(([key, , format]) => element("td", {
    textContent: format ? format(row[key]) : `${(100 * row[key]).toFixed(1)}%`,
  }))));
  document.getElementById("by-module").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...lines),
  );
}
