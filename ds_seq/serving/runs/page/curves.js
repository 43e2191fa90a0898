// Curves of several runs: a picture for each figure, drawn by uPlot.

/* global uPlot */
import { get } from "../page/answers.js";
import { element, shape } from "../page/elements.js";
import { ink, lineStyle, onTheme, query, short } from "./format.js";
import { savePicture } from "./picture.js";

const find = (id) => document.getElementById(id);
const FIRST = ["loss", "valid/loss", "nll", "lr", "grad_norm", "tokens_per_second"];
const FONT = '12px system-ui, "DejaVu Sans", sans-serif';
const HEIGHT = 230;
const MOST_ROWS = 100;
const panels = new Map(); // by figure
let names = [];
let answer = { curves: [], damaged: {} };
let chosen = null; // figures; null: none was chosen yet
let number = 0; // of the newest question

/** Ask for the curves of runs and draw them. */
export async function drawCurves(runs) {
  names = runs;
  const mine = ++number;
  if (!names.length) {
    answer = { curves: [], damaged: {} };
    draw();
    return;
  }
  const known = await get(`figures?${query({ run: names })}`);
  if (mine !== number) return;
  chosen ??= new Set([...FIRST, ...known.best].filter((name) => known.names.includes(name)));
  drawChoices(known.names);
  const figures = known.names.filter((name) => chosen.has(name)).sort((a, b) => order(a) - order(b));
  const asked = query({ run: names, figure: figures, x: find("axis").value });
  const found = figures.length ? await get(`curves?${asked}`) : { curves: [], damaged: {} };
  if (mine !== number) return;
  answer = found;
  find("svg").href = `curves.svg?${asked}`;
  find("csv").href = `curves.csv?${query({ run: names, figure: figures })}`;
  draw();
}

/** Return the place of a figure: that of training before its validation, others behind. */
function order(name) {
  const place = FIRST.indexOf(name);
  if (place >= 0) return place;
  return name.startsWith("valid/") ? FIRST.indexOf("valid/loss") + 0.5 : FIRST.length;
}

function drawChoices(known) {
  const holder = find("figures").querySelector("div");
  if (holder.dataset.known === known.join("\n")) return;
  holder.dataset.known = known.join("\n");
  const sorted = [...known].sort((a, b) => a.startsWith("valid/") - b.startsWith("valid/"));
  holder.replaceChildren(
    ...sorted.map((name) => {
      const box = element("input", { type: "checkbox", onchange: () => {
        box.checked ? chosen.add(name) : chosen.delete(name);
        again();
      } });
      box.checked = chosen.has(name);
      return element("label", { class: "check" }, box, name);
    }),
  );
}

function draw() {
  find("legend").replaceChildren(...names.map((name, i) => legendItem(name, lineStyle(i))));
  const damaged = Object.entries(answer.damaged).map(([run, count]) => `${run}: ${count} damaged lines are left out.`);
  find("curves-note").textContent = names.length
    ? ["Drag to zoom, double-click to zoom out; arrow keys move through the points.", ...damaged].join(" ")
    : "Select one or more runs.";
  const figures = [...new Set(answer.curves.map(({ figure }) => figure))];
  for (const [figure, panel] of panels) {
    if (figures.includes(figure)) continue;
    panel.plot?.destroy();
    panel.box.remove();
    panels.delete(figure);
  }
  figures.sort((a, b) => order(a) - order(b));
  figures.forEach((figure) => drawPanel(figure, answer.curves.filter((curve) => curve.figure === figure)));
  const boxes = figures.map((figure) => panels.get(figure).box);
  if (boxes.some((box, i) => box !== find("panels").children[i])) find("panels").replaceChildren(...boxes);
  drawValues();
}

function legendItem(name, { color, dash }) {
  const picture = shape("svg", { viewBox: "0 0 32 12", "aria-hidden": "true" });
  picture.append(shape("line", { x1: 0, x2: 32, y1: 6, y2: 6, stroke: color, "stroke-dasharray": dash.join(" ") }));
  return element("li", {}, picture, name);
}

/** Return an exponential mean of values, without the pull of its beginning. */
function smoothed(values, weight) {
  let mean = 0;
  let total = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function drawPanel(figure, curves) {
  const weight = Number(find("smoothing").value);
  const [logX, logY] = [find("log-x").checked, find("log-y").checked];
  const tables = [];
  const styles = [];
  for (const { run, x, y } of curves) {
    const kept = x.map((_, i) => i).filter((i) => (!logX || x[i] > 0) && (!logY || y[i] > 0));
    const [xs, ys] = [kept.map((i) => x[i]), kept.map((i) => y[i])];
    const style = lineStyle(names.indexOf(run));
    const isSmooth = weight > 0 && !figure.startsWith("valid/");
    if (isSmooth) {
      tables.push([xs, ys]);
      styles.push({ ...style, run: null, points: 0 });
    }
    tables.push([xs, isSmooth ? smoothed(ys, weight) : ys]);
    styles.push({ ...style, run, points: xs.length });
  }
  const data = uPlot.join(tables);
  const now = JSON.stringify([styles, logX, logY, find("axis").value, ink("--ink")]);
  let panel = panels.get(figure);
  if (panel?.drawnWith === now) {
    panel.curves = curves;
    panel.plot.setData(data, !panel.isZoomed);
    return;
  }
  if (!panel) {
    const plot = element("div", { class: "plot", tabindex: "0", role: "group", "aria-label": `${figure}; arrow keys read its points` });
    const readout = element("p", { class: "readout" });
    panel = { figure, holder: plot, readout, box: element("div", { class: "panel" }, element("h3", {}, figure), plot, readout) };
    panels.set(figure, panel);
    find("panels").append(panel.box);
    plot.addEventListener("keydown", (event) => step(panel, event));
  }
  panel.plot?.destroy();
  Object.assign(panel, { drawnWith: now, curves, styles, isZoomed: false });
  panel.plot = new uPlot(options(panel, logX, logY), data, panel.holder);
  panel.readout.textContent = "";
}

function options(panel, logX, logY) {
  const line = { stroke: ink("--soft"), font: FONT, grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") } };
  const shown = (_, splits) => splits.map((value) => (value === null ? "" : short(value)));
  return {
    width: width(panel), height: HEIGHT, legend: { show: false },
    cursor: { sync: { key: "curves" }, y: false, drag: { x: true, y: false } },
    scales: { x: { time: false, distr: logX ? 3 : 1 }, y: { distr: logY ? 3 : 1 } },
    axes: [{ ...line, values: shown, space: 70 }, { ...line, values: shown, size: 64 }],
    series: [{}, ...panel.styles.map(({ color, dash, run, points }) => ({
      stroke: color, dash, width: run === null ? 1 : 2, alpha: run === null ? 0.3 : 1, points: { show: points > 0 && points <= 30, size: 6, fill: color },
    }))],
    hooks: {
      setCursor: [() => read(panel)],
      setSelect: [(plot) => (panel.isZoomed = plot.select.width > 0)],
      ready: [(plot) => plot.over.addEventListener("dblclick", () => (panel.isZoomed = false))],
    },
  };
}

const width = (panel) => Math.max(220, panel.box.clientWidth - 20);

/** Say the values under the cursor: those of each run at, or last before, that place. */
function read(panel) {
  const { idx } = panel.plot?.cursor ?? {};
  if (idx === null || idx === undefined) {
    panel.readout.textContent = "";
    return;
  }
  const [xs, ...columns] = panel.plot.data;
  const parts = panel.styles.flatMap(({ run }, i) => {
    if (run === null) return [];
    let place = idx;
    while (place >= 0 && (columns[i][place] ?? null) === null) place--;
    return place < 0 ? [] : [`${run} ${short(columns[i][place])}`];
  });
  panel.readout.textContent = `${find("axis").value} ${short(xs[idx])}: ${parts.join(" \u00b7 ")}`;
}

/** Move the cursor of a picture with the keyboard, and let it be read aloud. */
function step(panel, event) {
  const last = panel.plot.data[0].length - 1;
  const idx = panel.plot.cursor.idx ?? 0;
  const next = { ArrowLeft: idx - 1, ArrowRight: idx + 1, PageUp: idx - 20, PageDown: idx + 20, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  panel.readout.setAttribute("aria-live", "polite");
  const place = Math.min(Math.max(next, 0), last);
  panel.plot.setCursor({ left: panel.plot.valToPos(panel.plot.data[0][place], "x"), top: HEIGHT / 2 });
}

/** Show the points of the pictures as tables, evenly thinned. */
function drawValues() {
  const holder = find("values").querySelector("div");
  if (!find("values").open) {
    holder.replaceChildren();
    return;
  }
  holder.replaceChildren(...[...panels.values()].map(({ figure, curves }) => {
    const [xs, ...columns] = uPlot.join(curves.map(({ x, y }) => [x, y]));
    const every = Math.ceil(xs.length / MOST_ROWS);
    const head = [find("axis").value, ...curves.map(({ run }) => run)];
    const rows = [...xs.keys()].filter((i) => i % every === 0 || i === xs.length - 1);
    return element("div", { class: "scroll" }, element("table", { class: "values" },
      element("caption", {}, figure),
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map((i) => element("tr", {},
        element("th", { scope: "row" }, short(xs[i])), ...columns.map((column) => element("td", {}, short(column[i]))))))));
  }));
}

const again = () => drawCurves(names).catch(console.error);
const widen = new ResizeObserver(() => panels.forEach((panel) => panel.plot?.setSize({ width: width(panel), height: HEIGHT })));
widen.observe(find("panels"));
find("axis").addEventListener("change", again);
["log-x", "log-y", "smoothing"].forEach((id) => find(id).addEventListener("input", draw));
find("values").addEventListener("toggle", drawValues);
find("png").addEventListener("click", () => savePicture([...panels.values()], names));
onTheme(draw);
