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
    Plotly.relayout(plot, colours(plot));
    plot.on("plotly_click", (event) => {
      const number = event.points[0].customdata;
      if (Number.isInteger(number)) showTrial(number);
    });
  });
}

// A picture in a closed part of the page has no width until it is opened.
for (const part of document.querySelectorAll("details")) {
  part.addEventListener("toggle", () => {
    if (part.open) part.querySelectorAll(".plot").forEach((plot) => Plotly.Plots.resize(plot));
  });
}

const repaint = () => plots.forEach((plot) => Plotly.relayout(plot, colours(plot)));
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
