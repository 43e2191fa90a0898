// Which experts get the tokens, over time: maps of each layer, and all layers at one update.

import { get } from "../page/answers.js";
import { choice, element, walk } from "../page/elements.js";
import { NOTHING, patient, query, short, whole } from "./format.js";

// as in ds_seq/reports/heat_map.py: from an eighth of the fair share to eight times as much
const SCALE = [[49, 54, 149], [116, 173, 209], [255, 255, 204], [244, 109, 67], [128, 0, 38]];
const REACH = 3;
const STARVED = 0.01;
const STARVED_COLOR = [60, 60, 60];
const FILES = "each file of the validation";
const GROUPS = { train: "training", valid: "validation" };
const holder = document.getElementById("maps");
const state = { run: null, of: "train", place: null }; // place: null is the last one
let names = [];
let number = 0;

export const showMaps = patient(holder, show);

/** Return red, green and blue of a share, in units of the fair share. */
function color(share) {
  if (share < STARVED) return STARVED_COLOR;
  const place = ((Math.min(Math.max(Math.log2(share), -REACH), REACH) + REACH) / (2 * REACH)) * (SCALE.length - 1);
  const low = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[low].map((from, i) => Math.round(from + (place - low) * (SCALE[low + 1][i] - from)));
}

/** Show the maps of one of the selected runs. */
async function show(runs) {
  names = runs;
  const mine = ++number;
  const found = await Promise.all(names.map((name) => get(`experts?${query({ run: name, of: state.of })}`)));
  if (mine !== number) return;
  const withExperts = found.filter(({ layers }) => layers.length);
  if (!withExperts.length) {
    holder.replaceChildren(element("p", { class: "note" }, names.length ? "None of the selected runs has experts, or figures of them yet." : "Select one or more runs."));
    return;
  }
  const answer = withExperts.find(({ run }) => run === state.run) ?? withExperts[0];
  state.run = answer.run;
  const files = answer.groups.filter((name) => name.startsWith("valid/"));
  const each = state.of === FILES ? await Promise.all(files.map((of) => get(`experts?${query({ run: answer.run, of })}`))) : [answer];
  if (mine === number) draw(withExperts.map(({ run }) => run), answer.groups, each);
}

function draw(runs, groups, answers) {
  const again = (key, value, id) => {
    state[key] = value;
    show(names).then(() => holder.querySelector(`[data-choice=${id}]`)?.focus()).catch(console.error);
  };
  const options = groups.some((name) => name.startsWith("valid/")) ? [...groups, FILES] : groups;
  const shown = options.map((name) => GROUPS[name] ?? name.replace("valid/", "validation: "));
  const ofRun = choice("Run", runs, (i) => again("run", runs[i], "run"));
  const ofTokens = choice("Tokens of", shown, (i) => again("of", options[i], "of"));
  mark(ofRun, "run", runs.indexOf(state.run));
  mark(ofTokens, "of", Math.max(options.indexOf(state.of), 0));
  const { updates } = answers[0];
  const last = updates.length - 1;
  const slider = element("input", { type: "range", min: 0, max: last, "data-choice": "place" });
  slider.value = Math.min(state.place ?? last, last);
  const at = element("output");
  const loads = element("div", { class: "loads" });
  const maps = answers.length > 1 ? [] : answers[0].layers.map((layer) => new LayerMap(layer, updates));
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const move = () => {
    const place = Number(slider.value);
    state.place = place === last ? null : place;
    at.textContent = `update ${whole(updates[place])}`;
    slider.setAttribute("aria-valuetext", at.textContent);
    loads.replaceChildren(...answers.map((answer) => loadTable(answer, updates[place], answers.length > 1, readout)));
    maps.forEach((map) => map.draw(place));
  };
  slider.addEventListener("input", move);
  maps.forEach((map) => map.listen(readout, (place) => { slider.value = place; move(); }));
  holder.replaceChildren(
    element("div", { class: "row" }, ofRun, ofTokens, element("label", { class: "slider" }, "Update", slider, at)),
    legend(), readout, loads, element("div", { class: "maps" }, ...maps.map((map) => map.box)),
  );
  move();
}

function mark(label, id, index) {
  const select = label.querySelector("select");
  select.dataset.choice = id;
  select.selectedIndex = index;
}

function legend() {
  const canvas = element("canvas", { width: 120, height: 1, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  for (let x = 0; x < 120; x++) {
    pen.fillStyle = `rgb(${color(2 ** ((x / 119) * 2 * REACH - REACH))})`;
    pen.fillRect(x, 0, 1, 1);
  }
  return element("p", { class: "scale" }, "Share of the tokens, 1 is fair: 1/8", canvas, "8; below 1/100 of the fair share: dark gray");
}

/** All layers at one update: a table, which can be read aloud. */
function loadTable(answer, update, isNamed, readout) {
  const place = Math.max(answer.updates.filter((known) => known <= update).length - 1, 0);
  const most = Math.max(...answer.layers.map((layer) => layer.num_experts));
  const hasEntropy = answer.layers.some((layer) => layer.entropy[place] !== null);
  const heads = [...Array(most).keys()].map(String).concat(hasEntropy ? ["entropy", "dropped"] : []);
  const rows = answer.layers.map((layer) => {
    const row = layer.shares[place];
    const cells = [...Array(most).keys()].map((expert) => {
      const share = row[expert];
      if (share === undefined) return element("td");
      const [r, g, b] = color(share);
      const says = `${layer.name}, expert ${expert}: ${short(share)} of its fair share, ${short((100 * share) / row.length)}% of the tokens`;
      const cell = element("td", { "aria-label": says, onfocus: () => (readout.textContent = says), onmouseenter: () => (readout.textContent = says) }, share.toFixed(2));
      cell.style.background = `rgb(${r}, ${g}, ${b})`;
      cell.style.color = 0.3 * r + 0.59 * g + 0.11 * b > 130 ? "#111" : "#fff";
      return cell;
    });
    const sides = hasEntropy ? [short(layer.entropy[place]), layer.dropped[place] === null ? NOTHING : `${short(100 * layer.dropped[place])}%`] : [];
    return element("tr", {}, element("th", { scope: "row" }, layer.name), ...cells, ...sides.map((text) => element("td", { class: "side" }, text)));
  });
  const head = element("tr", {}, element("th", { scope: "col" }, "expert"), ...heads.map((text) => element("th", { scope: "col" }, text)));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  walk(table);
  const title = isNamed ? [element("h4", {}, answer.of.replace("valid/", ""))] : [];
  return element("div", {}, ...title, element("div", { class: "scroll" }, table));
}

/** The experts of a layer, from top to bottom, over time. */
class LayerMap {
  constructor(layer, updates) {
    [this.layer, this.updates] = [layer, updates];
    this.cell = Math.max(3, Math.min(16, Math.round(120 / layer.num_experts)));
    this.column = Math.max(4, Math.ceil(960 / updates.length));
    const height = layer.num_experts * this.cell;
    this.canvas = element("canvas", { width: updates.length * this.column, height, role: "img", "aria-label": `${layer.name}: load of ${layer.num_experts} experts over time` });
    this.canvas.style.height = `${height}px`;
    const ends = element("p", { class: "ends" }, element("span", {}, whole(updates[0])), element("span", {}, "updates"), element("span", {}, whole(updates.at(-1))));
    this.box = element("div", { class: "map" }, element("h4", {}, layer.name), this.canvas, ends);
  }

  listen(readout, choose) {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * this.updates.length);
      const expert = Math.floor(((event.clientY - box.top) / box.height) * this.layer.num_experts);
      return [Math.min(Math.max(column, 0), this.updates.length - 1), Math.min(Math.max(expert, 0), this.layer.num_experts - 1)];
    };
    this.canvas.addEventListener("mousemove", (event) => {
      const [column, expert] = place(event);
      readout.textContent = `${this.layer.name}, expert ${expert}, update ${whole(this.updates[column])}: ${short(this.layer.shares[column][expert])} of its fair share`;
    });
    this.canvas.addEventListener("click", (event) => choose(place(event)[0]));
  }

  draw(chosen) {
    const pen = this.canvas.getContext("2d");
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.layer.shares.forEach((row, x) => row.forEach((share, expert) => {
      pen.fillStyle = `rgb(${color(share)})`;
      pen.fillRect(this.column * x, expert * this.cell, this.column, this.cell);
    }));
    const middle = Math.floor(this.column * (chosen + 0.5));
    for (const [ink, x] of [["#000", middle - 2], ["#fff", middle]]) {
      pen.fillStyle = ink;
      pen.fillRect(x, 0, 2, this.canvas.height);
    }
  }
}
