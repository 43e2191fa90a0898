// The table of runs: sorted, filtered, with settings as further columns.

import { element } from "../page/elements.js";
import { large, lineStyle, NOTHING, onTheme, span, whole } from "./format.js";

const best = (run) => (run.best_score === null ? NOTHING : `${run.best_by ?? ""} ${run.best_score.toFixed(2)}`);
const ago = (run) => (run.seen === null ? NOTHING : `${span(Date.now() / 1000 - run.seen)} ago`);
const COLUMNS = [
  { head: "run", value: (run) => run.name },
  { head: "state", value: (run) => run.state, text: (run) => run.state },
  {
    head: "update", value: (run) => run.update, isNumber: true,
    text: (run) => `${whole(run.update)} / ${run.last_update === null ? "?" : whole(run.last_update)}`,
  },
  { head: "best", value: (run) => run.best_score, text: best, isNumber: true },
  { head: "tokens/s", value: (run) => run.tokens_per_second, text: (run) => whole(run.tokens_per_second), isNumber: true },
  { head: "tokens", value: (run) => run.tokens, text: (run) => large(run.tokens), isNumber: true },
  { head: "parameters", value: (run) => run.parameters, text: (run) => large(run.parameters), isNumber: true },
  { head: "left", value: (run) => run.eta_seconds, text: (run) => span(run.eta_seconds), isNumber: true },
  { head: "seen", value: (run) => run.seen, text: ago, isNumber: true },
  { head: "error", value: (run) => run.error || null, text: (run) => run.error },
];

/** The rows stay the same elements, so that what has the focus keeps it. */
export class Table {
  constructor(table, select) {
    this.table = table;
    this.select = select;
    this.rows = new Map();
    this.sort = { column: "run", isDown: false };
    this.words = "";
    this.state = "";
    this.settings = [[], {}];
    this.head = element("tr");
    this.body = element("tbody");
    table.append(element("thead", {}, this.head), this.body);
    onTheme(() => this.again());
  }

  filter(words, state) {
    [this.words, this.state] = [words, state];
  }

  /** Show settings as columns: keys, and key -> run -> value. */
  setSettings(keys, values) {
    this.settings = [keys, values];
  }

  columns() {
    const [keys, values] = this.settings;
    const more = keys.map((key) => ({
      head: key,
      value: (run) => values[key]?.[run.name] ?? null,
      text: (run) => values[key]?.[run.name] ?? NOTHING,
      isSetting: true,
    }));
    return [...COLUMNS.slice(0, -1), ...more, COLUMNS.at(-1)];
  }

  /** Return the names of the runs that the filter leaves. */
  shown() {
    return this.order.map((run) => run.name);
  }

  again() {
    if (this.runs) this.show(this.runs, this.selected);
  }

  show(runs, selected) {
    [this.runs, this.selected] = [runs, selected];
    const columns = this.columns();
    this.drawHead(columns);
    const column = columns.find(({ head }) => head === this.sort.column) ?? columns[0];
    this.order = runs.filter((run) => this.passes(run)).sort((a, b) => this.compare(column, a, b));
    const lines = runs.filter((run) => selected.has(run.name)).map((run) => run.name);
    const drawn = this.order.map((run) => this.row(run, columns, lines));
    const same = drawn.length === this.body.rows.length && drawn.every((row, i) => row === this.body.rows[i]);
    if (!same) {
      const focused = document.activeElement;
      this.body.replaceChildren(...drawn);
      if (this.body.contains(focused)) focused.focus();
    }
  }

  passes(run) {
    const text = `${run.name} ${run.error}`.toLowerCase();
    return text.includes(this.words) && (!this.state || run.state === this.state);
  }

  compare(column, a, b) {
    const [left, right] = [column.value(a), column.value(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    const isBefore = typeof left === "number" ? left - right : left.localeCompare(right, "en", { numeric: true });
    return this.sort.isDown ? -isBefore : isBefore;
  }

  drawHead(columns) {
    const heads = columns.map(({ head }) => head).join("\n");
    if (heads !== this.heads) {
      this.heads = heads;
      this.head.replaceChildren(
        ...columns.map(({ head, isNumber }) =>
          element("th", { scope: "col", class: isNumber ? "number" : null },
            element("button", { type: "button", onclick: () => this.sortBy(head, isNumber) }, head)),
        ),
      );
    }
    [...this.head.cells].forEach((cell, i) => {
      const isSorted = columns[i].head === this.sort.column;
      const order = this.sort.isDown ? "descending" : "ascending";
      cell.setAttribute("aria-sort", isSorted ? order : "none");
      const arrow = isSorted ? (this.sort.isDown ? " \u2193" : " \u2191") : "";
      cell.firstChild.textContent = columns[i].head + arrow;
    });
  }

  sortBy(head, isNumber) {
    const isDown = this.sort.column === head ? !this.sort.isDown : Boolean(isNumber);
    this.sort = { column: head, isDown };
    this.again();
  }

  row(run, columns, lines) {
    let row = this.rows.get(run.name);
    if (!row) {
      const box = element("input", { type: "checkbox", onchange: () => this.select([run.name], box.checked) });
      const name = element("label", {}, box, element("span", { class: "mark" }), run.name);
      row = element("tr", {}, element("th", { scope: "row" }, name));
      this.rows.set(run.name, row);
    }
    const place = lines.indexOf(run.name);
    const [box, mark] = [row.querySelector("input"), row.querySelector(".mark")];
    box.checked = place >= 0;
    row.setAttribute("aria-selected", String(place >= 0));
    mark.classList.toggle("none", place < 0);
    mark.style.background = place < 0 ? "" : lineStyle(place).color;
    while (row.cells.length > columns.length) row.lastChild.remove();
    columns.slice(1).forEach((column, i) => this.cell(row, i + 1, column, run));
    return row;
  }

  cell(row, place, column, run) {
    const cell = row.cells[place] ?? row.insertCell();
    const text = column.text(run);
    const kind = column.head === "error" ? "error" : column.isSetting ? "setting" : column.isNumber ? "number" : "";
    if (cell.dataset.text === text && cell.className === kind) return;
    cell.dataset.text = text;
    cell.className = kind;
    cell.title = column.isSetting ? text : "";
    cell.replaceChildren(column.head === "state" ? element("span", { class: `chip ${text}` }, text) : text);
  }
}
