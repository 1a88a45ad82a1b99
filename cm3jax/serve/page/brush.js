// The brush: what is painted is transparent in the mask, which the server draws again.

import { $, make, png } from "./dom.js";

const state = { image: null, mask: null, at: [0, 0], done: null };

/* Lets the user paint over an image; gives `{mask, prompt}`, or null where they change their mind. */
export async function paintOver(content, caption) {
  const image = Object.assign(new Image(), { src: png(content) });
  await image.decode();
  const { width, height } = image;
  const scale = Math.max(1, Math.round(512 / width)); // fine lines over coarse pixels
  Object.assign($("canvas"), { width: scale * width, height: scale * height });
  Object.assign(state, { image, mask: make("canvas", { width, height }), at: [width / 2, height / 2] });
  Object.assign($("size"), { max: width / 2, value: width / 4 });
  $("caption").value = caption;
  show();
  $("brush").showModal();
  $("canvas").focus();
  return new Promise((resolve) => { state.done = resolve; });
}

function show(cursor = false) {
  const { width, height } = $("canvas"), context = $("canvas").getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(state.image, 0, 0, width, height);
  context.globalAlpha = 0.6;
  context.drawImage(state.mask, 0, 0, width, height);
  context.globalAlpha = 1;
  if (!cursor) return;
  const scale = width / state.mask.width, size = Number($("size").value);
  const box = [...state.at.map((at) => scale * Math.round(at - size / 2)), scale * size, scale * size];
  for (const [style, line] of [["#fff", 6], ["#000", 2]]) {
    Object.assign(context, { strokeStyle: style, lineWidth: line });
    context.strokeRect(...box);
  }
}

/* A stroke of the brush from where it was to a place. */
function stroke([x, y], from = [x, y]) {
  const context = state.mask.getContext("2d"), size = Number($("size").value);
  const steps = Math.max(1, Math.ceil(Math.hypot(x - from[0], y - from[1])));
  context.fillStyle = "#f0f";
  for (let step = 0; step <= steps; step++) {
    const [left, top] = [x, y].map((to, axis) => from[axis] + ((to - from[axis]) * step) / steps - size / 2);
    context.fillRect(Math.round(left), Math.round(top), size, size);
  }
  state.at = [x, y];
  show();
}

function point(event) {
  const canvas = $("canvas"), box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * state.mask.width) / box.width, ((event.clientY - box.top) * state.mask.height) / box.height];
}

function clear() {
  state.mask.getContext("2d").clearRect(0, 0, state.mask.width, state.mask.height);
  show();
}

/* Opaque, but for what was painted; null where nothing was. */
function maskUrl() {
  const { width, height } = state.mask, out = make("canvas", { width, height }), context = out.getContext("2d");
  if (!state.mask.getContext("2d").getImageData(0, 0, width, height).data.some(Boolean)) return null;
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(state.mask, 0, 0);
  return out.toDataURL("image/png");
}

function finish(result) {
  state.done?.(result);
  state.done = null;
  $("brush").close();
}

function key(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  const far = event.shiftKey ? Number($("size").value) : 1;
  if (step) state.at = state.at.map((at, axis) => Math.min(Math.max(at + far * step[axis], 0), [state.mask.width, state.mask.height][axis]));
  else if (event.key === " ") stroke(state.at);
  else if (event.key === "Backspace" || event.key === "Delete") clear();
  else return;
  event.preventDefault();
  show(true);
}

export function setUp(say) {
  const canvas = $("canvas");
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); stroke(point(event)); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) stroke(point(event), state.at); });
  canvas.addEventListener("keydown", key);
  canvas.addEventListener("focus", () => show(true));
  canvas.addEventListener("blur", () => show());
  $("clear").addEventListener("click", clear);
  $("cancel").addEventListener("click", () => finish(null));
  $("brush").addEventListener("close", () => finish(null));
  $("redraw").addEventListener("click", () => {
    const mask = maskUrl();
    if (mask) finish({ mask, prompt: $("caption").value });
    else say("nothing is painted: paint what is to be drawn again.");
  });
}
