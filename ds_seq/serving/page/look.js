// A closer look at one translation: tokens, alignment, attention, experts.

import { explain } from "./answers.js";
import { choice, element, shape, shownPiece, walk } from "./elements.js";

const section = document.getElementById("look");
// Okabe and Ito's colors, darkened so that white digits can be read on all of them
const COLORS = ["#0062a3", "#b34700", "#00744f", "#9c4677", "#8a6100", "#2a7fb0", "#5b5b5b", "#6a3d9a"];
const WORST = 5; // a token with a probability of e^-5 or less is marked as much as possible
let current = null;

/** Close what is open. */
export function close() {
  current?.abort();
  section.hidden = true;
  section.replaceChildren();
}

/** Ask the server about a translation and show what it answers. */
export async function look(model, line, hypothesis, language) {
  close();
  const mine = (current = new AbortController());
  section.hidden = false;
  section.append(element("h2", {}, `${model.name}: ${hypothesis.text || "empty translation"}`));
  if (model.task === "language_modeling") {
    section.append(ownTokens(hypothesis));
    return;
  }
  const ids = hypothesis.tokens.slice(0, -1).map((token) => token.id);
  const body = { model: model.name, text: line.source, target_ids: ids };
  if (language && !line.source.startsWith("<")) body.target_lang = language;
  const answer = await explain(body, mine.signal);
  if (current !== mine) return;
  const source = answer.source.map(shownPiece);
  const target = answer.target.map((token) => shownPiece(token.piece));
  section.append(
    ...tokenParts(answer.target),
    ...alignmentParts(answer, source, target),
    ...attentionParts(answer.attention, source, target),
    ...expertParts(answer.experts, source, target),
  );
  section.scrollIntoView({ block: "nearest" });
}

function ownTokens(hypothesis) {
  const list = element("ul", { class: "tokens" });
  hypothesis.tokens.forEach((token) => list.append(element("li", {}, chip(token, null))));
  return list;
}

function chip(token, onclick) {
  const score = token.score ?? -WORST;
  const doubt = Math.min(1, -score / WORST) * 55;
  return element(
    onclick ? "button" : "span",
    { class: "token", "--doubt": doubt.toFixed(1), onclick: onclick ?? (() => {}), type: onclick ? "button" : null },
    element("span", {}, shownPiece(token.piece)),
    element("span", { class: "score" }, score.toFixed(2)),
  );
}

function tokenParts(tokens) {
  const list = element("ul", { class: "tokens" });
  const below = element("div", { "aria-live": "polite" });
  const show = (token, button) => {
    list.querySelectorAll("button").forEach((each) => each.setAttribute("aria-expanded", "false"));
    button.setAttribute("aria-expanded", "true");
    const body = element("tbody");
    token.candidates.forEach(({ piece, log_prob }) =>
      body.append(
        element(
          "tr",
          {},
          element("td", {}, shownPiece(piece)),
          element("td", {}, `${(100 * Math.exp(log_prob)).toFixed(1)}%`),
          element("td", {}, log_prob.toFixed(2)),
        ),
      ),
    );
    const head = ["Candidate", "Probability", "Log-probability"];
    below.replaceChildren(
      element(
        "table",
        { class: "candidates" },
        element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
        body,
      ),
    );
  };
  tokens.forEach((token) => {
    const button = chip(token, () => show(token, button));
    button.setAttribute("aria-expanded", "false");
    list.append(element("li", {}, button));
  });
  const total = tokens.reduce((sum, token) => sum + token.score, 0);
  return [
    element("h3", {}, "Tokens and their log-probabilities"),
    element("p", { class: "note" }, `Sum ${total.toFixed(2)}. Choose a token to see what else could stand there.`),
    list,
    below,
  ];
}

/** Return the mean of all heads of a layer: [query][key]. */
function mean(heads) {
  return heads[0].map((row, i) => row.map((_, j) => heads.reduce((sum, head) => sum + head[i][j], 0) / heads.length));
}

/** Lines between each token and the source token that it attends to most, in the last layer. */
function alignmentParts(answer, source, target) {
  if (!answer.attention.cross.length) return [];
  const weights = mean(answer.attention.cross.at(-1));
  const holder = element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Alignment" });
  const heading = element("h3", {}, "Alignment");
  requestAnimationFrame(() => holder.append(drawLines(source.slice(0, -1), target.slice(0, -1), weights)));
  const note = "Each piece and the source piece that it attends to most, in the mean of the last layer's heads.";
  return [heading, element("p", { class: "note" }, note), holder];
}

function drawLines(source, target, weights) {
  const gap = 14;
  const picture = shape("svg", { class: "words", role: "img" });
  section.append(picture); // text has a width only on the page
  const place = (pieces, y) => {
    let x = 4;
    return pieces.map((piece) => {
      const text = shape("text", { x, y }, piece);
      picture.append(text);
      const width = Math.max(text.getComputedTextLength(), 6);
      x += width + gap;
      return { middle: x - gap - width / 2, end: x };
    });
  };
  const above = place(source, 18);
  const below = place(target, 118);
  const said = [];
  target.forEach((piece, row) => {
    const open = weights[row].slice(0, source.length);
    const column = open.indexOf(Math.max(...open));
    said.push(`${piece} to ${source[column]}`);
    const opacity = (0.25 + 0.75 * open[column]).toFixed(2);
    picture.append(
      shape("line", { x1: above[column].middle, y1: 25, x2: below[row].middle, y2: 102, opacity }),
    );
  });
  const width = Math.max(above.at(-1)?.end ?? 0, below.at(-1)?.end ?? 0) + 4;
  picture.setAttribute("width", width);
  picture.setAttribute("height", 128);
  picture.setAttribute("viewBox", `0 0 ${width} 128`);
  picture.setAttribute("aria-label", said.join("; "));
  return picture;
}

function attentionParts(attention, source, target) {
  const kinds = [
    ["target to source", attention.cross, target, source],
    ["source to source", attention.encoder, source, source],
    ["target to target", attention.decoder, target, ["start", ...target.slice(0, -1)]],
  ].filter(([, layers]) => layers.length);
  if (!kinds.length) return [];
  const chosen = { kind: 0, layer: kinds[0][1].length - 1, head: 0 };
  const holder = element("div");
  const draw = () => {
    const [, layers, rows, columns] = kinds[chosen.kind];
    chosen.layer = Math.min(chosen.layer, layers.length - 1);
    const heads = layers[chosen.layer];
    chosen.head = Math.min(chosen.head, heads.length);
    const weights = chosen.head === 0 ? mean(heads) : heads[chosen.head - 1];
    const layerNames = layers.map((_, i) => `${i + 1}`);
    const headNames = ["mean", ...heads.map((_, i) => `${i + 1}`)];
    const pick = (key) => (index) => {
      chosen[key] = index;
      draw();
      holder.querySelector(`[data-choice=${key}]`).focus();
    };
    const choices = [
      ["kind", choice("From and to", kinds.map(([name]) => name), pick("kind")), chosen.kind],
      ["layer", choice("Layer", layerNames, pick("layer")), chosen.layer],
      ["head", choice("Head", headNames, pick("head")), chosen.head],
    ];
    choices.forEach(([key, label, index]) => {
      const select = label.querySelector("select");
      select.dataset.choice = key;
      select.selectedIndex = index;
    });
    holder.replaceChildren(
      element("div", { class: "row" }, ...choices.map(([, label]) => label)),
      ...heatMap(weights, rows, columns),
    );
  };
  draw();
  return [element("h3", {}, "Attention"), holder];
}

function heatMap(weights, rows, columns) {
  const largest = Math.max(...weights.flat()) || 1; // the picture is of differences, the numbers are not
  const readout = element("p", { class: "readout", "aria-live": "polite" },
    `Point at a square, or use the arrow keys. The strongest is ${largest.toFixed(3)}.`);
  const head = element("tr", {}, element("td"));
  columns.forEach((piece) => head.append(element("th", { scope: "col" }, piece)));
  const body = element("tbody");
  weights.forEach((row, i) => {
    const made = element("tr", {}, element("th", { scope: "row" }, rows[i]));
    row.forEach((weight, j) => {
      const says = `${rows[i]} to ${columns[j]}: ${weight.toFixed(3)}`;
      const show = () => (readout.textContent = says);
      made.append(element("td", { "--weight": (weight / largest).toFixed(3), "aria-label": says, onfocus: show, onmouseenter: show }));
    });
    body.append(made);
  });
  const table = element("table", { class: "heat" }, element("thead", {}, head), body);
  walk(table);
  return [readout, element("div", { class: "scroll" }, table)];
}

function expertParts(layers, source, target) {
  if (!layers.length) return [];
  const parts = [element("h3", {}, "Experts")];
  const readout = element("p", { class: "readout", "aria-live": "polite" },
    "The experts of each token by layer, the number of each with a color of its own.");
  parts.push(readout);
  for (const [side, name, pieces] of [
    ["source", "Tokens of the source", source],
    ["target", "Tokens of the translation, where each is predicted", target],
    [null, "Other layers", null],
  ]) {
    const own = layers.filter((layer) => layer.side === side);
    if (!own.length) continue;
    const count = Math.max(...own.map((layer) => layer.visits.length));
    const names = pieces ?? Array.from({ length: count }, (_, i) => `${i + 1}`);
    parts.push(element("p", { class: "note" }, name), expertTable(own, names, readout));
  }
  return parts;
}

function expertTable(layers, names, readout) {
  const head = element("tr", {}, element("td"));
  names.forEach((piece) => head.append(element("th", { scope: "col" }, piece)));
  const body = element("tbody");
  for (const layer of layers) {
    const row = element("tr", {}, element("th", { scope: "row" }, layer.name));
    layer.visits.forEach((visits, i) => {
      const text = visits.map((visit) => visit.expert).join(" ");
      const each = visits.map((visit) => `expert ${visit.expert} with weight ${visit.weight.toFixed(2)}`);
      const says = `${layer.name}, ${names[i]}: ${each.join(", ") || "no expert"} (of ${layer.num_experts})`;
      const show = () => (readout.textContent = says);
      const cell = element("td", { "aria-label": says, onfocus: show, onmouseenter: show }, text || "\u2013");
      cell.style.background = visits.length ? COLORS[visits[0].expert % COLORS.length] : "#777";
      row.append(cell);
    });
    body.append(row);
  }
  const table = element("table", { class: "experts" }, element("thead", {}, head), body);
  walk(table);
  return element("div", { class: "scroll" }, table);
}
