"use strict";

// Pictures take the page's colours, and follow a switch between light and dark and the white of paper.
function colours(plot) {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  const changes = { "font.color": get("--ink"), "hoverlabel.bgcolor": get("--panel") };
  changes["hoverlabel.bordercolor"] = get("--line");
  changes["hoverlabel.font.color"] = get("--ink");
  for (const axis of Object.keys(plot.layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
    changes[axis + ".gridcolor"] = get("--grid");
    changes[axis + ".linecolor"] = get("--muted");
    changes[axis + ".tickcolor"] = get("--muted");
  }
  return changes;
}

// Names beside lying bars take the width of a phone: there they stand above their bars.
const BAR = 11;
const NAME = 19;
function namesAbove(data, layout) {
  const { tickvals, ticktext } = layout.yaxis;
  const bars = BAR * data.length;
  layout.annotations = tickvals.map((y, index) => ({
    x: 0, xref: "paper", xanchor: "left", y, yanchor: "bottom", yshift: bars / 2 - 2, text: ticktext[index],
    font: { size: 10 }, showarrow: false,
  }));
  Object.assign(layout.yaxis, { showticklabels: false, ticks: "", range: [-0.5, tickvals.length - 0.4] });
  layout.bargap = NAME / (bars + NAME);
  layout.margin.l = 12;
  layout.height = layout.margin.t + layout.margin.b + (bars + NAME) * tickvals.length;
  layout.xaxis.nticks = 5;
}

// On a phone a title and its ticks take more than the width that there is: the title in two lines, every second tick.
function fit(data, layout, width) {
  if (width > 480) return;
  layout.font.size = 11;
  layout.margin = { ...layout.margin, l: 56, r: Math.max(10, layout.margin.r - 14), b: 74 };
  if (data.every((trace) => trace.orientation === "h")) namesAbove(data, layout);
  if (layout.xaxis2) {
    // Titles of panels that stand side by side.
    for (const note of layout.annotations || []) {
      if (note.text.length > 16) note.text = "…" + note.text.slice(-13);
      note.font = { ...note.font, size: 9 };
    }
  }
  for (const axis of Object.keys(layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
    const { title, tickvals } = layout[axis];
    if (axis.startsWith("x")) layout[axis].tickangle = 0;
    if (axis.startsWith("x") && tickvals && tickvals.length > 5) {
      const kept = (_, index) => index % 2 === 0;
      layout[axis].ticktext = layout[axis].ticktext.filter(kept);
      layout[axis].tickvals = tickvals.filter(kept);
    }
    if (title && title.text && title.text.length > 34) {
      const half = Math.floor(title.text.length / 2);
      const spaces = [title.text.indexOf(" ("), title.text.indexOf(" ", half), title.text.lastIndexOf(" ", half)];
      const middle = spaces.find((place) => place > 0);
      if (middle) title.text = title.text.slice(0, middle) + "<br>" + title.text.slice(middle + 1);
    }
  }
}

// Around a single value plotly shows what lies within 1 of it, such as −50 % to 150 %: 5 points of a share are enough.
function separate(data, layout) {
  const axis = layout.yaxis;
  if (axis.range || axis.rangemode || axis.type === "log" || data.some((trace) => trace.type === "bar")) return;
  const heights = data.flatMap((trace) => (trace.yaxis && trace.yaxis !== "y" ? [] : trace.y || []));
  const values = new Set(heights.filter((value) => typeof value === "number"));
  if (values.size !== 1 || data.some((trace) => trace.error_y)) return;
  const [value] = values;
  const isShare = /[p%]$/.test(axis.tickformat || "");
  const room = isShare ? 0.05 : 0.05 * Math.abs(value) || 1;
  axis.range = [value - room, isShare ? Math.min(value + room, 1.009) : value + room];
}

const BUTTONS = { displaylogo: false, responsive: true, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

function linkToTrials(plot) {
  plot.on("plotly_click", (event) => {
    const number = event.points[0].customdata;
    if (number !== undefined) showTrial(number);
  });
}

// A picture is drawn when it comes near the view, and one in a closed part of the page when that is opened.
function whenNear(plot, begin) {
  const near = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      near.disconnect();
      begin();
    },
    { rootMargin: "800px" },
  );
  near.observe(plot);
}

function startFigures() {
  const plots = Array.from(document.querySelectorAll(".plot[role=img]"));
  const drawn = new Set();

  function draw(plot) {
    if (drawn.has(plot)) return;
    drawn.add(plot);
    const figure = JSON.parse(plot.nextElementSibling.textContent);
    fit(figure.data, figure.layout, plot.clientWidth);
    separate(figure.data, figure.layout);
    Plotly.newPlot(plot, figure.data, figure.layout, BUTTONS).then(() => {
      Plotly.relayout(plot, colours(plot));
      linkToTrials(plot);
    });
  }

  plots.forEach((plot) => whenNear(plot, () => draw(plot)));
  window.addEventListener("beforeprint", () => plots.forEach(draw));

  const repaint = () => drawn.forEach((plot) => Plotly.relayout(plot, colours(plot)));
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    window.matchMedia(query).addEventListener("change", repaint);
  }
}

// The chart whose axes the reader chooses: any cost against any metric, with the front where it is known what is better.
function startFreeChart() {
  const plot = document.getElementById("free");
  if (!plot) return;
  const { trials, pick, layout: look, costs, metrics } = JSON.parse(document.getElementById("free-data").textContent);
  const [across, up] = document.querySelectorAll(".axes select");
  const log = document.querySelector(".axes input");
  const said = document.querySelector(".axes output");
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // From the cheapest to the dearest, the trials that are better than all cheaper ones.
  function frontOf(points, better) {
    const sign = better === "max" ? 1 : -1;
    let best = -Infinity;
    const kept = [];
    for (const point of [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y))) {
      if (sign * point.y > best) {
        best = sign * point.y;
        kept.push(point);
      }
    }
    return kept;
  }

  function text(value, percent) {
    if (percent) return (100 * value).toFixed(1) + " %";
    const prefixes = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
    const [scale, prefix] = prefixes.find(([scale]) => Math.abs(value) >= scale) || [1, ""];
    return Number((value / scale).toPrecision(4)) + (prefix && " " + prefix);
  }

  function draw() {
    const cost = costs[across.selectedIndex];
    const metric = metrics[up.selectedIndex];
    const points = [];
    trials.forEach((number, i) => {
      const x = cost.values[i];
      const y = metric.values[i];
      if (x !== null && y !== null) points.push({ number, x, y });
    });
    const front = metric.better ? frontOf(points, metric.better) : [];
    const on = new Set(front.map((point) => point.number));
    const trace = (name, chosen, marker) => ({
      x: chosen.map((point) => point.x), y: chosen.map((point) => point.y), name, marker, mode: "markers",
      customdata: chosen.map((point) => point.number), hoverinfo: "text",
      hovertext: chosen.map(
        (point) => "<b>trial " + point.number + "</b><br>" + metric.label + ": " + text(point.y, metric.percent) +
          "<br>" + cost.label + ": " + text(point.x, false),
      ),
    });
    const line = { color: ink("--accent"), width: 2, shape: "hv" };
    const data = [
      { x: front.map((point) => point.x), y: front.map((point) => point.y), mode: "lines", line, hoverinfo: "skip", showlegend: false },
      trace("trials", points.filter((point) => !on.has(point.number)), { symbol: "circle-open", size: 8, color: ink("--muted") }),
      trace("front of these axes", points.filter((point) => on.has(point.number)), { size: 10, color: ink("--accent") }),
      trace("pick of the campaign", points.filter((point) => point.number === pick), { symbol: "diamond-open", size: 16, color: ink("--pick") }),
    ];
    const logarithmic = log.checked && points.every((point) => point.x > 0);
    const layout = structuredClone(look);
    layout.xaxis.title = { text: cost.label };
    layout.xaxis.type = logarithmic ? "log" : "linear";
    if (logarithmic) [layout.xaxis.tickvals, layout.xaxis.ticktext] = cost.ticks;
    layout.yaxis.title = { text: metric.label };
    layout.yaxis.tickformat = metric.percent ? ".3~p" : "";
    fit(data, layout, plot.clientWidth);
    separate(data, layout);
    const missing = trials.length - points.length;
    said.textContent = (missing ? missing + " of " + trials.length + " complete trials were not measured so. " : "") +
      (metric.better ? "" : "No front: it is not known which way this metric is better.");
    Plotly.react(plot, data, layout, BUTTONS).then(() => Plotly.relayout(plot, colours(plot)));
  }

  let isDrawn = false;
  const begin = () => {
    if (isDrawn) return;
    isDrawn = true;
    draw();
    linkToTrials(plot);
  };
  whenNear(plot, begin);
  window.addEventListener("beforeprint", begin);
  [across, up, log].forEach((control) => control.addEventListener("change", draw));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

// The table of all trials: rows are data, and one page of them is in the document.
const PAGE = 100;
let showTrial = () => {};

function startTables() {
  const table = document.querySelector("table.trials");
  if (!table) return;
  const { columns, rows, command } = JSON.parse(document.getElementById("trials-data").textContent);
  const search = document.querySelector("input[type=search]");
  const [previous, next] = document.querySelectorAll(".pages button");
  const place = document.querySelector(".pages span");
  const headers = Array.from(table.tHead.rows[0].cells);
  let shown = rows;
  let first = 0;
  let texts = null;

  const textOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const valueOf = (cell) => (Array.isArray(cell) ? cell[1] : cell);

  function badge(word) {
    const span = document.createElement("span");
    span.className = "badge " + word;
    span.textContent = word;
    return span;
  }

  function cellOf(value, column, row) {
    const cell = document.createElement("td");
    const text = textOf(value);
    if (column.kind === "badge") {
      cell.append(badge(text));
    } else if (column.kind === "code") {
      const code = document.createElement("code");
      code.textContent = text;
      cell.append(code);
    } else {
      cell.textContent = text;
    }
    if (Array.isArray(value)) cell.className = "number";
    if (column.kind === "long") {
      cell.className = "long";
      cell.title = text;
    }
    if (column.name === "trial" && row.place) cell.append(" ", badge(row.place));
    return cell;
  }

  function draw() {
    const body = document.createElement("tbody");
    for (const row of shown.slice(first, first + PAGE)) {
      const line = document.createElement("tr");
      line.id = "trial-" + row.number;
      if (row.place) line.className = row.place;
      row.cells.forEach((value, index) => line.append(cellOf(value, columns[index], row)));
      body.append(line);
    }
    table.tBodies[0].replaceWith(body);
    const last = Math.min(first + PAGE, shown.length);
    const trials = shown.length === 1 ? " trial" : " trials";
    place.textContent = shown.length ? first + 1 + " – " + last + " of " + shown.length + trials : "no trial";
    previous.disabled = first === 0;
    next.disabled = last >= shown.length;
    previous.parentElement.classList.toggle("single", shown.length <= PAGE);
  }

  // Numbers by value, everything else by its text; what is missing stays at the end.
  function sortBy(column, ascending) {
    const collator = new Intl.Collator("en", { numeric: true });
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b));
    const keyed = rows.map((row) => [valueOf(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      const missing = (a === null || a === "") - (b === null || b === "");
      if (missing || a === null || a === "") return missing;
      return ascending ? compare(a, b) : compare(b, a);
    });
    rows.splice(0, rows.length, ...keyed.map(([, row]) => row));
    texts = null;
    filter();
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length) {
      texts = texts || rows.map((row) => [...row.cells.map(textOf), row.place || ""].join(" ").toLowerCase());
      shown = rows.filter((_, index) => words.every((word) => texts[index].includes(word)));
    } else {
      shown = rows;
    }
    first = 0;
    draw();
  }

  // Below the row of a point that was clicked: how a complete trial is run again.
  function detailsOf(row) {
    if (textOf(row.cells[columns.findIndex((column) => column.name === "state")]) !== "complete") return [];
    const line = document.createElement("tr");
    line.className = "hit";
    const cell = line.insertCell();
    cell.colSpan = columns.length;
    const code = document.createElement("code");
    code.textContent = command + " " + row.number;
    cell.append("run it again and compare: ", code);
    return [line];
  }

  showTrial = (number) => {
    if (!shown.some((row) => row.number === number)) {
      search.value = "";
      filter();
    }
    const index = shown.findIndex((row) => row.number === number);
    if (index < 0) return;
    first = Math.floor(index / PAGE) * PAGE;
    draw();
    const row = document.getElementById("trial-" + number);
    row.classList.add("hit");
    row.after(...detailsOf(shown[index]));
    row.scrollIntoView({ block: "center", behavior: "smooth" });
  };

  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(column, ascending);
    });
  });
  search.addEventListener("input", filter);
  previous.addEventListener("click", () => {
    first -= PAGE;
    draw();
  });
  next.addEventListener("click", () => {
    first += PAGE;
    draw();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#trial-"]');
    if (!link) return;
    event.preventDefault();
    showTrial(Number(link.getAttribute("href").slice("#trial-".length)));
  });
  draw();
}

// plotly's library is kept compressed in the page. The page's policy names its hash, so nothing else can run in its place.
async function loadPlotly() {
  const packed = document.getElementById("plotly").textContent;
  const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

// The page is read and its tables work before the figures are there.
async function start() {
  for (const plot of document.querySelectorAll(".plot.sized")) plot.style.minHeight = plot.dataset.height + "px";
  startTables();
  try {
    await loadPlotly();
  } catch (error) {
    console.warn(error);
    document.querySelectorAll(".plot").forEach((plot) => {
      plot.textContent = "This browser cannot unpack the figures; the folder of this page has them as pictures.";
      plot.classList.add("empty");
    });
    return;
  }
  startFigures();
  startFreeChart();
}

start();
