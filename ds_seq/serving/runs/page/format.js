// How numbers, times and colors are shown.

export const NOTHING = "\u2013";
// Okabe and Ito's colors, which readers with any color vision can tell apart; dark and light paper
const DARK_INK = ["#0072b2", "#d55e00", "#009e73", "#b5618f", "#a67c00", "#3a93c4", "#444444"];
const LIGHT_INK = ["#56b4e9", "#ff8a3d", "#2fc79a", "#e59ac4", "#f0c040", "#8fd0f5", "#d8d8d8"];
const DASHES = [[], [8, 4], [2, 3], [8, 3, 2, 3]];
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Call a function when the page changes between light and dark. */
export function onTheme(change) {
  dark.addEventListener("change", change);
}

/** Return color and dashes of the n-th line of a picture. */
export function lineStyle(n) {
  const colors = dark.matches ? LIGHT_INK : DARK_INK;
  return { color: colors[n % colors.length], dash: DASHES[Math.floor(n / colors.length) % DASHES.length] };
}

/** Return the value of a color of the style sheet. */
export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Format a count exactly, with separators. */
export function whole(value) {
  return value === null ? NOTHING : Math.round(value).toLocaleString("en-US");
}

/** Format a large count with a unit. */
export function large(value) {
  if (value === null) return NOTHING;
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return `${(value / size).toFixed(value >= 100 * size ? 0 : 1)} ${unit}`;
  }
  return `${value}`;
}

/** Format a value of a curve with about four digits. */
export function short(value) {
  if (value === null || value === undefined) return NOTHING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2);
  return Number(value.toPrecision(size >= 1000 ? 6 : 4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}

/** Format a time span with its two largest units. */
export function span(seconds) {
  if (seconds === null) return NOTHING;
  const minutes = Math.floor(Math.max(seconds, 0) / 60);
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor(minutes / 60) % 24];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : `${Math.round(Math.max(seconds, 0))} s`;
}

/**
 * Return a function that shows what has changed of some runs, but not while its part of the page is
 * in use: then it waits until the focus leaves.
 */
export function patient(holder, show) {
  let names = [];
  let isLate = false;
  holder.addEventListener("focusout", (event) => {
    if (!isLate || holder.contains(event.relatedTarget)) return;
    isLate = false;
    show(names).catch(console.error);
  });
  return async (runs) => {
    isLate = runs.join("\n") === names.join("\n") && holder.contains(document.activeElement);
    names = runs;
    if (!isLate) await show(names);
  };
}

/** Return a query with each value of each key. */
export function query(values) {
  const made = new URLSearchParams();
  for (const [key, each] of Object.entries(values)) {
    for (const value of [each].flat()) made.append(key, value);
  }
  return made.toString();
}
