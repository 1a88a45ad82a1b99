// The page of the server: asks its own API, shows what comes, and puts no text in as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const uploads = []; // data URLs of the prompt's pictures, by number
let running = null; // the AbortController of what is being drawn
let model = "";

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "wrong" : "";
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) $("keyrow").hidden = false;
  const said = await answer.json().catch(() => null);
  throw new Error(said?.error?.message || `the server answered ${answer.status}`);
}

const post = (path, body, signal) => call(path, {
  method: "POST", signal, body: JSON.stringify(body), headers: { "Content-Type": "application/json" },
});

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    const parts = left.split("\n\n");
    left = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (!data || data === "data: [DONE]") continue;
      const event = JSON.parse(data.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function busy(what, work) {
  running?.abort();
  const mine = (running = new AbortController());
  $("stop").disabled = false;
  say(`${what} …`);
  const begin = performance.now();
  try {
    await work(mine.signal);
    say(`${what}: done in ${((performance.now() - begin) / 1000).toFixed(1)} s.`);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    else if (running === mine) say("stopped.");
  } finally {
    if (running === mine) $("stop").disabled = true;
  }
}

function number(id) {
  return $(id).value === "" ? undefined : Number($(id).value);
}

function drawBody() {
  return {
    prompt: $("prompt").value, n: number("samples") ?? 1, seed: number("seed"),
    guidance: number("guidance"), temperature: number("temperature"),
    retrieve: number("retrieve"), stream: true,
  };
}

const source = (content) => `data:image/png;base64,${content}`;

/* A sample: its picture as it comes, then its documents and what can be done with it. */
function card(title) {
  const picture = make("img", { alt: "a picture that is being drawn" });
  const rest = make("div");
  const node = make("article", {}, make("h2", { textContent: title }), picture, rest);
  $("results").append(node);
  return { node, picture, rest, title };
}

function fill(shown, event, body) {
  shown.picture.src = source(event.b64_json);
  if (!event.type.endsWith("completed")) return;
  shown.picture.alt = `a picture of: ${body.prompt}`;
  const file = `cm3jax-${event.seed}-${event.sample}`;
  const recipe = JSON.stringify({ model, request: body, answer: event }, null, 1);
  shown.rest.replaceChildren(
    make("p", { className: "about", textContent: `seed ${event.seed}, sample ${event.sample}, perplexity ${event.perplexity.toFixed(2)}` }),
    make("div", { className: "row" },
      button("Paint over", () => paint(event.b64_json, body.prompt)),
      button("Caption", () => chat([picturePart(event.b64_json)], "Caption")),
      button("Ask", () => ask(event.b64_json)),
      link("PNG", `${file}.png`, source(event.b64_json)),
      link("JSON", `${file}.json`, URL.createObjectURL(new Blob([recipe], { type: "application/json" })))),
    documents(event, body),
  );
}

function button(text, onclick) {
  return make("button", { type: "button", textContent: text, onclick });
}

function link(text, download, href) {
  return make("a", { textContent: text, download, href });
}

function documents(event, body) {
  const list = make("ul", { className: "documents" });
  event.documents.forEach((found, place) => list.append(documentItem(found, place, event, body)));
  return list;
}

function again(body, event, changes) {
  return draw({ ...body, seed: event.seed, ...changes });
}

function documentItem(found, place, event, body) {
  const picture = make("img", { alt: "" });
  const about = make("div");
  const item = make("li", {}, picture, about);
  const given = body.documents || [];
  const others = given.filter((_, each) => each !== place);
  if (!found.key) {
    picture.src = given[place]?.image || "";
    about.append(make("p", { textContent: "your document" }),
      button("Remove", () => again(body, event, { documents: others })));
    return item;
  }
  const words = make("p", { textContent: found.key });
  const score = found.score === null ? "given" : `score ${found.score.toFixed(2)}`;
  const factor = make("input", { type: "number", min: 0, max: 10, step: 0.1, value: body.weigh?.[found.key] ?? 1 });
  const upload = make("input", { type: "file", accept: "image/*", hidden: true, onchange: async () => {
    const image = await read(upload.files[0]);
    again(body, event, { ...without(found, place, body), retrieve: Math.max(0, body.retrieve - 1), documents: [...others, { image }] });
  } });
  upload.setAttribute("aria-label", `a picture in place of ${found.key}`);
  about.append(words,
    make("p", { className: "about", textContent: `${score}, ${found.source}, ${found.licence}` }),
    make("div", { className: "row" },
      button("Remove", () => again(body, event, without(found, place, body))),
      button("Replace", () => upload.click()), upload,
      make("label", {}, "weigh ", factor),
      button("Apply", () => again(body, event, { weigh: { ...(body.weigh || {}), [found.key]: Number(factor.value) } }))));
  call(`v1/documents/${encodeURIComponent(found.key)}`).then((answer) => answer.json()).then((known) => {
    if (known.b64_json) picture.src = source(known.b64_json);
    words.textContent = known.text || found.key;
    picture.alt = `a document's picture: ${words.textContent}`;
  }).catch(() => {});
  return item;
}

function without(found, place, body) {
  if (found.score === null) return { documents: (body.documents || []).filter((_, each) => each !== place) };
  return { exclude: [...(body.exclude || []), found.key] };
}

async function draw(body) {
  await busy("Drawing", async (signal) => {
    $("results").replaceChildren();
    const counts = $("compare").checked ? [0, 1, 2] : [body.retrieve];
    const seed = body.seed ?? Math.floor(Math.random() * 2 ** 32);
    await Promise.all(counts.map((retrieve) => drawOne({ ...body, retrieve, seed }, signal, counts.length > 1)));
  });
}

async function drawOne(body, signal, several) {
  const title = several ? `${body.retrieve} document${body.retrieve === 1 ? "" : "s"}` : "Picture";
  const cards = Array.from({ length: body.n }, (_, place) => card(body.n > 1 ? `${title}, sample ${place + 1}` : title));
  const answer = await post("v1/images/generations", body, signal);
  for await (const event of events(answer)) fill(cards[event.sample], event, body);
}

const picturePart = (content) => ({ type: "image_url", image_url: { url: content.startsWith("data:") ? content : source(content) } });

async function chat(content, title) {
  await busy(title, async (signal) => {
    const body = { messages: [{ role: "user", content }], temperature: number("temperature"), seed: number("seed"), stream: true };
    const shown = make("div");
    $("results").prepend(make("article", {}, make("h2", { textContent: title }), shown));
    let text = "";
    for await (const event of events(await post("v1/chat/completions", body, signal))) {
      const delta = event.choices[0]?.delta || {};
      text += delta.content || "";
      shown.textContent = text;
      if (delta.parts) shown.replaceChildren(...delta.parts.map((part) => part.type === "text"
        ? make("p", { textContent: part.text })
        : make("img", { src: part.image_url.url, alt: "a picture of the document" })));
    }
  });
}

function ask(content) {
  const question = window.prompt("Your question about the picture");
  if (question) chat([{ type: "text", text: question }, picturePart(content)], question);
}

/* The document's notation: `<image:N>` in the text is the N-th picture that was inserted. */
function documentParts(text) {
  return text.split(/(<image:\d+>)/).filter((part) => part.trim()).map((part) => {
    const place = part.match(/^<image:(\d+)>$/);
    if (!place) return { type: "text", text: part };
    if (!uploads[place[1] - 1]) throw new Error(`there is no picture ${place[1]}; insert it.`);
    return picturePart(uploads[place[1] - 1]);
  });
}

function insert(text) {
  $("prompt").setRangeText(text, $("prompt").selectionStart, $("prompt").selectionEnd, "end");
  $("prompt").focus();
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file can't be read."));
    reader.readAsDataURL(file);
  });
}

/* The brush: what is painted is transparent in the mask, which the server draws again. */
const brush = { image: null, mask: null, at: [0, 0] };

async function paint(content, caption) {
  brush.image = new Image();
  brush.image.src = source(content);
  await brush.image.decode();
  const [width, height] = [brush.image.width, brush.image.height];
  Object.assign($("canvas"), { width, height });
  brush.mask = make("canvas", { width, height });
  brush.content = content;
  brush.at = [width / 2, height / 2];
  $("size").max = Math.max(2, width / 2);
  $("size").value = Math.max(1, width / 8);
  $("caption").value = caption;
  show();
  $("brush").showModal();
}

function show() {
  const context = $("canvas").getContext("2d");
  context.globalAlpha = 1;
  context.drawImage(brush.image, 0, 0);
  context.globalAlpha = 0.6;
  context.drawImage(brush.mask, 0, 0);
}

function dab(x, y) {
  brush.at = [x, y];
  const context = brush.mask.getContext("2d"), size = Number($("size").value);
  context.fillStyle = "#f0f";
  context.fillRect(Math.round(x - size / 2), Math.round(y - size / 2), size, size);
  show();
}

function point(event) {
  const box = $("canvas").getBoundingClientRect();
  return [(event.clientX - box.left) * $("canvas").width / box.width, (event.clientY - box.top) * $("canvas").height / box.height];
}

function maskFile() {
  const { width, height } = brush.mask, out = make("canvas", { width, height }), context = out.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(brush.mask, 0, 0);
  return new Promise((resolve) => out.toBlob(resolve, "image/png"));
}

async function redraw() {
  const form = new FormData(), body = { prompt: $("caption").value };
  form.append("image", await (await fetch(source(brush.content))).blob(), "image.png");
  form.append("mask", await maskFile(), "mask.png");
  form.append("prompt", body.prompt);
  form.append("stream", "true");
  if ($("seed").value) form.append("seed", $("seed").value);
  $("brush").close();
  await busy("Redrawing", async (signal) => {
    const shown = card("Redrawn");
    $("results").prepend(shown.node);
    const answer = await call("v1/images/edits", { method: "POST", body: form, signal });
    for await (const event of events(answer)) fill(shown, event, { ...body, n: 1, retrieve: 0, stream: true });
  });
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); draw(drawBody()); });
$("document").addEventListener("click", () => {
  try { chat(documentParts($("prompt").value), "Document"); } catch (error) { say(error.message, true); }
});
$("stop").addEventListener("click", () => running?.abort());
$("picture").addEventListener("click", () => $("pictures").click());
$("pictures").addEventListener("change", async () => {
  uploads.push(await read($("pictures").files[0]));
  $("pictures").value = ""; // the same file may be chosen again
  insert(`<image:${uploads.length}>`);
});
document.querySelectorAll("[data-mark]").forEach((each) => each.addEventListener("click", () => insert(each.dataset.mark)));
$("canvas").addEventListener("pointerdown", (event) => { $("canvas").setPointerCapture(event.pointerId); dab(...point(event)); });
$("canvas").addEventListener("pointermove", (event) => { if (event.buttons) dab(...point(event)); });
$("canvas").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (step) brush.at = [brush.at[0] + step[0], brush.at[1] + step[1]];
  else if (event.key === " ") dab(...brush.at);
  else if (event.key === "Backspace") clearMask();
  else return;
  event.preventDefault();
  show();
  $("canvas").getContext("2d").strokeRect(brush.at[0] - 1, brush.at[1] - 1, 2, 2);
});
function clearMask() { brush.mask.getContext("2d").clearRect(0, 0, brush.mask.width, brush.mask.height); show(); }
$("clear").addEventListener("click", clearMask);
$("cancel").addEventListener("click", () => $("brush").close());
$("redraw").addEventListener("click", redraw);
$("key").addEventListener("change", start);

async function start() {
  try {
    model = (await (await call("v1/models")).json()).data[0].id;
    $("model").textContent = model;
    say("");
  } catch (error) { say(error.message, true); }
}
start();
