"""The report's page, style and script. Kept as Python text so that the report needs no data files at run time."""

from __future__ import annotations

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
$scripts
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --muted: #5b6470; --line: #dde1e6; --grid: #e8ebef;
  --accent: #0067a3; --knee: #b84d00; --good: #00785a; --warn: #8a5a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1c2026; --ink: #e6e9ed; --muted: #9aa4b0; --line: #333a43; --grid: #2a3038;
    --accent: #62b0e8; --knee: #ff9350; --good: #3fc79d; --warn: #e3b04b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 62rem; }
a { color: var(--accent); }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .86em; }
pre {
  background: var(--panel); border-radius: 6px; padding: .75rem 1rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere;
}
ul { padding-left: 1.2rem; max-width: 62rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
.subtitle, figcaption, .note { color: var(--muted); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tile { background: var(--panel); border-radius: 8px; padding: .7rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.pick {
  border-left: 4px solid var(--knee); background: var(--panel); border-radius: 0 8px 8px 0; padding: .8rem 1.2rem;
}
.pick .lead { font-size: 1.1rem; }
.pick pre { background: var(--paper); margin: .6rem 0; }
.caveat { color: var(--warn); }
figure.chart { margin: 1rem 0; }
figcaption { margin-top: .4rem; }
.plot { height: 430px; width: 100%; }
.plot.low { height: 225px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1.5rem; }
.two > * { min-width: 0; }
.two .plot { height: 305px; }
noscript img { max-width: 100%; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
th.number, td.number { text-align: right; }
td.number { white-space: nowrap; }
table.sortable th { white-space: nowrap; }
td.long { max-width: 22rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); }
th button::after { content: " ↕"; opacity: .35; }
th[aria-sort="ascending"] button::after { content: " ↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: " ↓"; opacity: 1; }
tr.front td:first-child { box-shadow: inset 3px 0 var(--accent); }
tr.knee td:first-child { box-shadow: inset 3px 0 var(--knee); }
tr:target td, tr.hit td { background: var(--panel); }
.badge {
  border-radius: 99px; padding: .05rem .55rem; font-size: .8rem; border: 1px solid currentColor; white-space: nowrap;
}
.badge.complete { color: var(--good); } .badge.failed { color: var(--knee); } .badge.stopped { color: var(--muted); }
.badge.knee { color: var(--knee); } .badge.front { color: var(--accent); }
input[type="search"] {
  font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: .35rem .7rem; width: min(24rem, 100%);
}
details { border: 1px solid var(--line); border-radius: 8px; padding: .5rem 1rem; margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .5rem 0; font-size: .9rem; }
dt { color: var(--muted); overflow-wrap: anywhere; max-width: 22rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  :root {
    color-scheme: light; --paper: #fff; --panel: #f6f7f9; --ink: #000; --muted: #444; --line: #bbb; --grid: #ddd;
    --accent: #00507f; --knee: #9c4100; --good: #00604a; --warn: #6b4600;
  }
  html { font-size: 11px; }
  body { padding: 0; max-width: none; }
  .two { display: block; }
  h2 { break-after: avoid; }
  figure.chart, .pick, tr, details { break-inside: avoid; }
  .scroll { overflow: visible; }
  table.sortable { font-size: .6rem; }
  table.sortable :is(th, td) { padding: .2rem .25rem; white-space: normal; overflow-wrap: anywhere; }
  input[type="search"], .modebar { display: none; }
  td.long { max-width: none; white-space: normal; overflow-wrap: anywhere; }
}
"""

SCRIPT = r"""
"use strict";

// Pictures take the page's colours, and follow a switch between light and dark and the white of paper.
function colours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  const changes = { "font.color": get("--ink"), "hoverlabel.bgcolor": get("--panel") };
  changes["hoverlabel.bordercolor"] = get("--line");
  changes["hoverlabel.font.color"] = get("--ink");
  for (const axis of ["xaxis", "yaxis"]) {
    changes[axis + ".gridcolor"] = get("--grid");
    changes[axis + ".linecolor"] = get("--muted");
    changes[axis + ".tickcolor"] = get("--muted");
  }
  return changes;
}

const plots = Array.from(document.querySelectorAll(".plot"));

function showTrial(number) {
  const row = document.getElementById("trial-" + number);
  if (!row) return;
  document.querySelectorAll("tr.hit").forEach((other) => other.classList.remove("hit"));
  row.classList.add("hit");
  row.scrollIntoView({ block: "center", behavior: "smooth" });
}

for (const plot of plots) {
  const figure = JSON.parse(plot.nextElementSibling.textContent);
  const buttons = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
  const config = { displaylogo: false, responsive: true, modeBarButtons: buttons };
  Plotly.newPlot(plot, figure.data, figure.layout, config).then(() => {
    Plotly.relayout(plot, colours());
    plot.on("plotly_click", (event) => {
      const number = event.points[0].customdata;
      if (Number.isInteger(number)) showTrial(number);
    });
  });
}

const repaint = () => plots.forEach((plot) => Plotly.relayout(plot, colours()));
for (const query of ["(prefers-color-scheme: dark)", "print"]) {
  window.matchMedia(query).addEventListener("change", repaint);
}

// Sorting by a column: numbers by value, everything else by its text; what is missing stays at the end.
function sortBy(table, column, ascending) {
  const key = (row) => {
    const cell = row.cells[column];
    const value = "value" in cell.dataset ? cell.dataset.value : cell.textContent;
    return value === "" ? null : cell.classList.contains("number") ? Number(value) : value;
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  const rows = Array.from(table.tBodies[0].rows).map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return ascending ? compare(a, b) : compare(b, a);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending);
    });
  });
}

// Filtering by text, over all trials.
const search = document.querySelector("input[type=search]");
if (search) {
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelector("table.sortable").tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
"""
