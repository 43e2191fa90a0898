// The settings in which the selected runs differ; some of them as columns of the table of runs.

import { get } from "../page/answers.js";
import { element } from "../page/elements.js";
import { NOTHING, query } from "./format.js";

const table = document.getElementById("differences");
const note = document.getElementById("settings-note");
const columns = new Set();
let shown = ""; // what the table was drawn of
let everything = null; // of all runs, once one of them is a column

/** Show the settings of runs; `setColumns` gets keys, and key -> run -> value. */
export async function showDifferences(names, setColumns) {
  if (names.length < 2) {
    shown = "";
    table.replaceChildren();
    note.textContent = "Select two or more runs.";
    return;
  }
  const { settings, without } = await get(`differences?${query({ run: names })}`);
  const now = JSON.stringify([names, settings, without]);
  if (now === shown) return;
  shown = now;
  const keys = Object.keys(settings);
  const unread = without.length ? ` The settings of ${without.join(", ")} cannot be read.` : "";
  note.textContent = (keys.length ? "" : "They have the same settings.") + unread;
  const pin = async (key, button) => {
    columns.has(key) ? columns.delete(key) : columns.add(key);
    button.setAttribute("aria-pressed", String(columns.has(key)));
    everything ??= await get("differences");
    setColumns([...columns], everything.settings);
  };
  const rows = keys.map((key) => {
    const button = element("button", {
      type: "button", "aria-pressed": String(columns.has(key)), "aria-label": `${key} as a column of all runs`,
      onclick: () => pin(key, button),
    }, "column");
    const cells = names.map((name) => {
      const value = settings[key][name] ?? NOTHING;
      return element("td", { title: value }, value);
    });
    return element("tr", {}, element("th", { scope: "row" }, key), ...cells, element("td", {}, button));
  });
  const head = names.map((name) => element("th", { scope: "col" }, name));
  table.replaceChildren(
    ...(keys.length
      ? [element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "setting"), ...head, element("td"))), element("tbody", {}, ...rows)]
      : []),
  );
}
