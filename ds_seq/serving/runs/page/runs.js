// The page: what is selected, and when its parts are asked for again.

import { get, ServerError } from "../page/answers.js";
import { drawCurves } from "./curves.js";
import { showDifferences } from "./differences.js";
import { query } from "./format.js";
import { showMaps } from "./maps.js";
import { showSamples } from "./samples.js";
import { Table } from "./table.js";

const MOST_SELECTED = 28;
const SECONDS = 4; // between questions
const find = (id) => document.getElementById(id);
const problem = find("error");
let runs = [];
let shownOf = ""; // what the parts below the table were drawn of
let busy = false;
const selected = new Set(new URLSearchParams(location.hash.slice(1)).getAll("run"));
const table = new Table(find("runs"), select);

function report(error) {
  problem.textContent = error.message;
  problem.hidden = false;
  if (!(error instanceof ServerError)) console.error(error);
}

function select(names, isSelected) {
  for (const name of names) {
    if (!isSelected) selected.delete(name);
    else if (selected.size < MOST_SELECTED) selected.add(name);
  }
  history.replaceState(null, "", selected.size ? `#${query({ run: [...selected] })}` : " ");
  table.show(runs, selected);
  say();
  parts().catch(report);
}

function say() {
  const most = selected.size === MOST_SELECTED ? ", as many as can be told apart" : "";
  find("selected").textContent = `${selected.size} selected${most}`;
}

/** Show the parts below the table, if what they show has changed. */
async function parts() {
  const chosen = runs.filter((run) => selected.has(run.name));
  const now = JSON.stringify(chosen.map((run) => [run.name, run.update, run.seen, run.state]));
  if (now === shownOf) return;
  shownOf = now;
  const names = chosen.map((run) => run.name);
  await Promise.all([
    showDifferences(names, (keys, values) => {
      table.setSettings(keys, values);
      table.show(runs, selected);
    }),
    drawCurves(names),
    showMaps(names),
    showSamples(names),
  ]);
}

/** Ask for the runs, and show what has changed. */
async function refresh() {
  if (busy || document.hidden) return;
  busy = true;
  try {
    const answer = await get("runs");
    const isFirst = !runs.length;
    runs = answer.runs;
    if (isFirst) begin(answer.folders);
    table.show(runs, selected);
    const running = runs.filter((run) => run.state === "running").length;
    find("state").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"}, ${running} running`;
    say();
    await parts();
    problem.hidden = true;
  } catch (error) {
    shownOf = "";
    find("state").textContent = error instanceof ServerError ? "not connected" : "error";
    report(error);
  } finally {
    busy = false;
  }
}

/** Fill what depends on the first answer: states, and a selection if there is none. */
function begin(folders) {
  document.title = `ds_seq: ${folders.join(", ")}`;
  for (const state of new Set(runs.map((run) => run.state))) find("of-state").append(new Option(state, state));
  if ([...selected].some((name) => runs.some((run) => run.name === name))) return;
  selected.clear();
  const newest = [...runs].sort((a, b) => (b.seen ?? 0) - (a.seen ?? 0));
  newest.slice(0, 4).forEach((run) => selected.add(run.name));
}

function filter() {
  table.filter(find("filter").value.trim().toLowerCase(), find("of-state").value);
  table.show(runs, selected);
}

find("filter").addEventListener("input", filter);
find("of-state").addEventListener("change", filter);
find("select-shown").addEventListener("click", () => select(table.shown(), true));
find("select-none").addEventListener("click", () => select([...selected], false));
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, 1000 * SECONDS);
refresh();
