// Translations of the same sentences at each validation, with what has changed from one to the next.

import { get } from "../page/answers.js";
import { choice, element } from "../page/elements.js";
import { NOTHING, patient, query, short, whole } from "./format.js";

const holder = document.getElementById("samples");
const state = { run: null, other: null, sentence: 1 }; // sentence 0: all
let names = [];
let number = 0;

export const showSamples = patient(holder, show);

/** Show the translations of one of the selected runs, or of two side by side. */
async function show(runs) {
  names = runs;
  const mine = ++number;
  const found = (await Promise.all(names.map((name) => get(`samples?${query({ run: name })}`)))).filter(({ sentences }) => sentences.length);
  if (mine !== number) return;
  if (!found.length) {
    holder.replaceChildren(element("p", { class: "note" }, names.length ? "The selected runs have no validation with translations yet; task.samples and validation.metrics make them." : "Select one or more runs."));
    return;
  }
  const first = found.find(({ run }) => run === state.run) ?? found[0];
  const second = found.find(({ run }) => run === state.other && run !== first.run);
  draw(found.map(({ run }) => run), second ? [first, second] : [first]);
}

function draw(runs, answers) {
  const sources = answers[0].sentences.map(({ source }) => source);
  state.sentence = Math.min(state.sentence, sources.length);
  const redraw = (key, value) => {
    state[key] = value;
    show(names).then(() => holder.querySelector(`[data-choice=${key}]`)?.focus()).catch(console.error);
  };
  const others = ["none", ...runs.filter((run) => run !== answers[0].run)];
  const choices = [
    ["run", choice("Run", runs, (i) => redraw("run", runs[i])), runs.indexOf(answers[0].run)],
    ["other", choice("Compare with", others, (i) => redraw("other", i ? others[i] : null)), Math.max(others.indexOf(answers[1]?.run), 0)],
    ["sentence", choice("Sentence", ["all", ...sources.map((text, i) => `${i + 1}: ${text.slice(0, 60)}`)], (i) => redraw("sentence", i)), state.sentence],
  ];
  choices.forEach(([key, label, index]) => {
    const select = label.querySelector("select");
    select.dataset.choice = key;
    select.selectedIndex = index;
  });
  const shown = answers[0].sentences.filter((_, i) => !state.sentence || i === state.sentence - 1);
  holder.replaceChildren(
    element("div", { class: "row" }, ...choices.map(([, label]) => label)),
    ...shown.map((sentence) => article(sentence, answers)),
  );
}

function article(sentence, answers) {
  const list = element("dl", {}, element("dt", {}, "source"), element("dd", {}, sentence.source));
  if (sentence.reference !== null) list.append(element("dt", {}, "reference"), element("dd", {}, sentence.reference));
  const tables = answers.map((answer) => {
    const own = answer.sentences.find(({ source, reference }) => source === sentence.source && reference === sentence.reference);
    return own ? history(answer, own.translations, answers.length > 1) : element("p", { class: "note" }, `${answer.run} has not translated it.`);
  });
  return element("article", { class: "sample" }, list, element("div", { class: "columns" }, ...tables));
}

function history({ run, updates, scores, best_by: name }, translations, isNamed) {
  let before = null;
  const rows = updates.map((update, i) => {
    const text = translations[i];
    if (text === null) return null;
    const cell = text === before ? element("td", { class: "same" }, "as before") : element("td", {}, ...marked(before, text));
    before = text;
    const score = scores[i] === null ? NOTHING : `${name} ${short(scores[i])}`;
    return element("tr", {}, element("th", { scope: "row" }, whole(update), element("span", { class: "score" }, score)), cell);
  });
  const caption = isNamed ? [element("caption", {}, run)] : [];
  return element("table", {}, ...caption, element("tbody", {}, ...rows.filter(Boolean)));
}

/** Return a text with the words that it has gained marked, and those that it has lost. */
function marked(before, text) {
  if (before === null) return [text || NOTHING];
  const [old, now] = [before, text].map((each) => each.split(/\s+/).filter(Boolean));
  const parts = [];
  for (const [kind, words] of changes(old, now)) {
    if (parts.length) parts.push(" ");
    parts.push(kind === "same" ? words.join(" ") : element(kind, {}, words.join(" ")));
  }
  return parts.length ? parts : [NOTHING];
}

/** Return runs of words by what has become of them, along a longest common subsequence. */
function changes(old, now) {
  const common = Array.from({ length: old.length + 1 }, () => new Uint16Array(now.length + 1));
  for (let i = old.length - 1; i >= 0; i--) {
    for (let j = now.length - 1; j >= 0; j--) {
      common[i][j] = old[i] === now[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const found = [];
  const add = (kind, word) => (found.at(-1)?.[0] === kind ? found.at(-1)[1].push(word) : found.push([kind, [word]]));
  let [i, j] = [0, 0];
  while (i < old.length || j < now.length) {
    if (i < old.length && j < now.length && old[i] === now[j]) {
      add("same", now[j]);
      [i, j] = [i + 1, j + 1];
    } else if (j === now.length || (i < old.length && common[i + 1][j] >= common[i][j + 1])) {
      add("del", old[i++]);
    } else {
      add("ins", now[j++]);
    }
  }
  return found;
}
