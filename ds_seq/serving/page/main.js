// The form and the translations.

import { ServerError, models, stream, translate as translateLines } from "./answers.js";
import { element } from "./elements.js";
import { close, look } from "./look.js";

const find = (id) => document.getElementById(id);
const [form, results, problem, state] = ["question", "results", "error", "state"].map(find);
const NOTHING = "\u2014";
let known = [];
let current = null; // stops the translations under way

function report(error) {
  if (error.name === "AbortError") return;
  problem.textContent = error.message;
  problem.hidden = false;
  if (!(error instanceof ServerError)) console.error(error);
}

function number(id) {
  const text = find(id).value.trim();
  return text === "" ? null : Number(text);
}

/** Return the question that the form asks, without the model. */
function question() {
  const search = {};
  if (number("beam") !== null) search.beam = number("beam");
  if (number("length-penalty") !== null) search.length_penalty = number("length-penalty");
  if (find("sampling").checked) search.sampling = true;
  if (number("seed") !== null) search.seed = number("seed");
  return {
    text: find("text").value,
    n_best: number("n-best") ?? 1,
    search,
    tokens: true,
  };
}

/** Return what the form says about one translation; null if it says nothing. */
function restrictions() {
  const prefix = find("prefix").value.trim();
  const phrases = find("phrases").value.split(";").map((phrase) => phrase.trim()).filter(Boolean);
  if (!prefix && !phrases.length) return null;
  return { prefix: prefix || null, constraints: phrases.length ? [phrases] : [] };
}

function hypothesisButton(model, line, hypothesis, place) {
  const score = hypothesis.score === null ? "impossible" : hypothesis.score.toFixed(3);
  return element(
    "button",
    {
      type: "button",
      class: "hypothesis",
      "aria-pressed": "false",
      "aria-label": `Translation ${place + 1}: ${hypothesis.text || "empty"}; score ${score}`,
      onclick: (event) => {
        document
          .querySelectorAll(".hypothesis[aria-pressed=true]")
          .forEach((button) => button.setAttribute("aria-pressed", "false"));
        event.currentTarget.setAttribute("aria-pressed", "true");
        look(model, line, hypothesis, find("language").value || null).catch(report);
      },
    },
    element("span", { class: "text" }, hypothesis.text || NOTHING),
    element("span", { class: "score" }, score),
  );
}

function sentence(model, line) {
  const made = element("article", { class: "sentence" }, element("p", {}, line.source || NOTHING));
  if (line.cut) {
    made.append(element("p", { class: "warning" }, "Too long for the model: only its start is translated."));
  }
  if (line.untagged) {
    made.append(element("p", { class: "warning" }, "Without a language tag that the model needs."));
  }
  const list = element("ol");
  line.hypotheses.forEach((hypothesis, place) =>
    list.append(element("li", {}, hypothesisButton(model, line, hypothesis, place))),
  );
  made.append(list);
  return made;
}

async function translateWith(model, column, signal) {
  const body = { ...question(), model: model.name };
  if (find("language").value) body.target_lang = find("language").value;
  const restricted = restrictions();
  if (restricted) {
    // the whole text is one line: restrictions are those of one translation
    const lines = await translateLines({ ...body, ...restricted }, signal);
    lines.forEach((line) => column.append(sentence(model, line)));
    return;
  }
  const sentences = [];
  for await (const sent of stream(body, signal)) {
    column.append(sentence(model, sent.line));
    sentences.push(sent);
    showWhole(column.querySelector(".whole"), sentences);
  }
}

/** Show the best translations of several sentences as one text, to be copied. */
function showWhole(field, sentences) {
  field.hidden = sentences.length < 2;
  let text = "";
  let paragraph = sentences[0].paragraph;
  for (const sent of sentences) {
    const gap = "\n".repeat(sent.paragraph - paragraph) || (text && " ");
    text += gap + sent.line.hypotheses[0].text;
    paragraph = sent.paragraph;
  }
  field.value = text;
  field.rows = Math.min(8, 1 + sentences.length);
}

function column(model) {
  const whole = element("textarea", {
    class: "whole",
    readonly: true,
    hidden: true,
    "aria-label": `Whole translation by ${model.name}`,
  });
  const made = element("div", { class: "answers" }, element("h2", {}, model.name), whole);
  results.append(made);
  return made;
}

async function translate() {
  current?.abort();
  const mine = (current = new AbortController());
  problem.hidden = true;
  close();
  results.replaceChildren();
  const chosen = [known[find("model").selectedIndex]];
  if (find("other").selectedIndex > 0) chosen.push(known[find("other").selectedIndex - 1]);
  results.classList.toggle("two", chosen.length > 1);
  results.setAttribute("aria-busy", "true");
  find("stop").hidden = false;
  const tasks = chosen.map((model) => translateWith(model, column(model), mine.signal));
  const done = await Promise.allSettled(tasks);
  if (current !== mine) return;
  done.filter((task) => task.status === "rejected").forEach((task) => report(task.reason));
  results.setAttribute("aria-busy", "false");
  find("stop").hidden = true;
}

/** Adapt the form to the model: its languages, and the options that it uses by itself. */
function adapt() {
  const model = known[find("model").selectedIndex];
  const languages = find("language");
  languages.replaceChildren();
  if (model.target_langs.length) languages.append(element("option", { value: "" }, "as tagged"));
  model.target_langs.forEach((code) => languages.append(element("option", { value: code }, code)));
  find("language-label").hidden = !model.target_langs.length;
  find("beam").placeholder = model.generation.beam;
  find("length-penalty").placeholder = model.generation.length_penalty;
  find("text").placeholder =
    model.task === "language_modeling" ? "The beginning of a text" : `One or more sentences (${model.source_lang})`;
}

async function start() {
  known = await models();
  find("other").append(element("option", {}, "none"));
  for (const { name } of known) {
    find("model").append(element("option", {}, name));
    find("other").append(element("option", {}, name));
  }
  adapt();
  const count = known.length === 1 ? "one model" : `${known.length} models`;
  state.textContent = `ready: ${count}`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  translate().catch(report);
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
find("stop").addEventListener("click", () => current?.abort());
find("model").addEventListener("change", adapt);
start().catch((error) => {
  state.textContent = "not connected";
  report(error);
});
