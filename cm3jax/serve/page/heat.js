// A map of what a document did, code by code: orange where it made a code likelier, blue less so.

import { make } from "./dom.js";

const MORE = [230, 110, 0], LESS = [30, 100, 255], OPAQUE = 200; // of 255: the image shows through

/* Rows and columns of nats as an image of so many pixels; `most` nats cover most. */
export function heatMap(heat, most) {
  const rows = heat.length, columns = heat[0].length;
  const node = make("canvas", { className: "heat", width: columns, height: rows, role: "img", ariaLabel: told(heat) });
  const context = node.getContext("2d"), shown = context.createImageData(columns, rows);
  heat.flat().forEach((nats, place) => {
    shown.data.set([...(nats < 0 ? LESS : MORE), OPAQUE * Math.min(1, Math.abs(nats) / most)], 4 * place);
  });
  context.putImageData(shown, 0, 0);
  return node;
}

/* The same in words. */
export function told(heat) {
  const flat = heat.flat(), most = Math.max(...flat), place = flat.indexOf(most), columns = heat[0].length;
  if (most <= 0) return "it made no part of the image likelier";
  return `most in row ${Math.floor(place / columns) + 1}, column ${(place % columns) + 1} of ${heat.length} by ${columns}: ${most.toFixed(1)} nats`;
}
