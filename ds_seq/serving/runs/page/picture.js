// The curves as one picture to keep.

import { ink, lineStyle } from "./format.js";

const GAP = 16;
const TITLE = 26;
const ROW = 20;

/** Save the panels with their titles and a legend as a PNG, as they are on the page. */
export function savePicture(panels, names) {
  if (!panels.length) return;
  const scale = devicePixelRatio;
  const canvases = panels.map((panel) => panel.plot.ctx.canvas);
  const cell = { width: Math.max(...canvases.map((each) => each.width)), height: Math.max(...canvases.map((each) => each.height)) + TITLE * scale };
  const columns = panels.length > 1 ? 2 : 1;
  const rows = Math.ceil(panels.length / columns);
  const picture = document.createElement("canvas");
  picture.width = columns * (cell.width + GAP * scale);
  picture.height = rows * (cell.height + GAP * scale) + (names.length * ROW + GAP) * scale;
  const pen = picture.getContext("2d");
  pen.fillStyle = ink("--paper");
  pen.fillRect(0, 0, picture.width, picture.height);
  pen.textBaseline = "middle";
  canvases.forEach((canvas, i) => {
    const [x, y] = [(i % columns) * (cell.width + GAP * scale), Math.floor(i / columns) * (cell.height + GAP * scale)];
    pen.drawImage(canvas, x, y + TITLE * scale);
    pen.fillStyle = ink("--ink");
    pen.font = `600 ${14 * scale}px system-ui, "DejaVu Sans", sans-serif`;
    pen.fillText(panels[i].figure, x + GAP * scale, y + (TITLE / 2) * scale);
  });
  pen.font = `${13 * scale}px system-ui, "DejaVu Sans", sans-serif`;
  names.forEach((name, i) => {
    const y = picture.height - (names.length - i) * ROW * scale - (GAP / 2) * scale;
    const { color, dash } = lineStyle(i);
    pen.strokeStyle = color;
    pen.lineWidth = 3 * scale;
    pen.setLineDash(dash.map((length) => length * scale));
    pen.beginPath();
    pen.moveTo(GAP * scale, y);
    pen.lineTo((GAP + 34) * scale, y);
    pen.stroke();
    pen.fillStyle = ink("--ink");
    pen.fillText(name, (GAP + 44) * scale, y);
  });
  picture.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "curves.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}
