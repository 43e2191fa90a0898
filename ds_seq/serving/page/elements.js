// Small helpers to build the page.

/** Return a new element with attributes and children (elements or text). */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Return a new element of a picture. */
export function shape(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

/** Return a choice with a label; `chosen` is called with the index of an option. */
export function choice(label, options, chosen) {
  const made = element("select", { onchange: () => chosen(made.selectedIndex) });
  options.forEach((text) => made.append(element("option", {}, text)));
  return element("label", {}, `${label} `, made);
}

/** Let arrow keys move through the cells of a table; the one in use can be reached with Tab. */
export function walk(table) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  const first = rows[0]?.[0];
  if (!first) return;
  first.tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    const row = rows.findIndex((cells) => cells.includes(event.target));
    if (!step || row < 0) return;
    const column = rows[row].indexOf(event.target);
    const next = rows[row + step[0]]?.[column + step[1]];
    event.preventDefault();
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/** Return a piece of a vocabulary as text: the sign of a space becomes one that is seen. */
export function shownPiece(piece) {
  return piece === "" ? "\u2423" : piece.replaceAll("\u2581", "\u2423");
}
