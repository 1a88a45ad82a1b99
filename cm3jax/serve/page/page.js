// The page of the server: what is asked, and where the answers go.

import { call, stream } from "./api.js";
import { paintOver, setUp } from "./brush.js";
import { newCard, showFailure, showPicture, showRows } from "./card.js";
import { pinned } from "./documents.js";
import { $, button, chooser, make, png } from "./dom.js";
import { readRecipe } from "./recipe.js";

const MARKS = /<(image:\d+|break|mask|infill)>/;
const uploads = []; // data URLs of the prompt's images: `<image:1>` is the first
let running = 0, stopper = new AbortController(), model = "";

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "wrong" : "";
}

/* Does something that takes a while and can be stopped. */
async function busy(what, work) {
  running += 1;
  $("stop").disabled = false;
  say(`${what} …`);
  const begin = performance.now();
  try {
    await work(stopper.signal);
    say(`${what}: done in ${((performance.now() - begin) / 1000).toFixed(1)} s.`);
  } catch (error) {
    say(error.name === "AbortError" ? "stopped." : error.message, error.name !== "AbortError");
  } finally {
    running -= 1;
    $("stop").disabled = !running;
  }
}

function stop() {
  stopper.abort();
  stopper = new AbortController();
}

const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));

/* A heading with a grid of cards, at the top of the results. */
function section(title) {
  const cards = make("div", { className: "cards" }), node = make("section", { ariaLabel: title });
  node.append(make("header", {}, make("h2", { textContent: title }), button("Close", () => node.remove(), `Close the results of ${title}`)), cards);
  $("results").prepend(node);
  return cards;
}

/* Draws a job's samples on cards, which are by sample; others of its samples are not shown. */
async function draw(job, cards, signal) {
  try {
    for await (const event of stream(job, signal)) {
      const card = cards[event.sample];
      if (!card) continue;
      if (event.type.endsWith("completed")) showPicture(card, event, job, model);
      else showRows(card, event);
    }
  } catch (error) {
    const left = Object.values(cards).filter((card) => !card.answer);
    left.forEach((card) => showFailure(card, error.name === "AbortError" ? "stopped." : error.message));
    throw error;
  }
}

const documents = (count) => (count === 1 ? "1 document" : `${count || "no"} documents`);

async function drawPrompt() {
  const prompt = $("prompt").value, samples = number("samples") ?? 1;
  if (MARKS.test(prompt)) return say("the prompt has marks of a document: choose “Continue or fill in”.", true);
  const body = { prompt, n: samples, seed: number("seed") ?? Math.floor(Math.random() * 2 ** 32), guidance: number("guidance"), temperature: number("temperature"), attribute: true };
  const counts = $("compare").checked ? [0, 1, 2] : [number("retrieve")];
  const cards = section(prompt);
  return busy("Drawing", (signal) => settled(counts.map((retrieve) => {
    const own = Array.from({ length: samples }, (_, place) => newCard(documents(retrieve) + (samples > 1 ? `, sample ${place + 1}` : "")));
    cards.append(make("div", { className: $("compare").checked ? "column" : "several" }, ...own.map((card) => card.node)));
    return draw({ path: "v1/images/generations", body: { ...body, retrieve } }, own, signal);
  })));
}

/* Waits for all, then throws what the first of them threw. */
async function settled(promises) {
  const failed = (await Promise.allSettled(promises)).find((each) => each.status === "rejected");
  if (failed) throw failed.reason;
}

/* Draws a changed job on a card after the one that it was changed on. */
async function drawAfter(card, what, words, job) {
  const after = newCard(words), { sample } = job;
  Object.assign(after.scores, card.scores);
  card.node.after(after.node);
  after.heading.focus();
  await busy(what, (signal) => draw(job, { [sample]: after }, signal));
}

function again({ answer, job, node, scores }, { changes, words }) {
  const { sample, seed } = answer;
  const body = { ...job.body, seed, n: sample + 1, ...changes };
  return drawAfter({ node, scores }, "Drawing again", words, { ...job, body, sample });
}

async function paint(card) {
  const painted = await paintOver(card.answer.b64_json, card.job.body.prompt);
  if (painted) edit(card, "Redrawing", "painted over", { mask: painted.mask }, { prompt: painted.prompt });
}

/* Redraws an image, with the documents that it was drawn with. */
function edit(card, what, words, files, body) {
  const { answer, job } = card, given = pinned(answer, job.body);
  return drawAfter(card, what, words, {
    path: "v1/images/edits", sample: 0, files: { image: png(answer.b64_json), ...files },
    body: { n: 1, seed: answer.seed, temperature: number("temperature"), documents: given, attribute: true, ...body },
  });
}

const picturePart = (url) => ({ type: "image_url", image_url: { url } });

function ask(card, { task, text }) {
  if (task !== "caption" && !text) return say("write the question or the change first.", true);
  if (task === "editing") return edit(card, "Changing", `changed: ${text}`, {}, { prompt: text });
  const shown = make("div"), title = task === "caption" ? "Caption" : text;
  card.said.append(make("h4", { textContent: title }), shown);
  const content = [...(text && task === "vqa" ? [{ type: "text", text }] : []), picturePart(png(card.answer.b64_json))];
  return busy(task === "caption" ? "Captioning" : "Asking", (signal) => chat({ task, content }, shown, signal));
}

/* Shows an answer as it comes: its text, then its parts in order. */
async function chat({ task, content }, shown, signal, more = {}) {
  const body = { messages: [{ role: "user", content }], task, temperature: number("temperature"), seed: number("seed"), ...more };
  let text = "";
  for await (const event of stream({ path: "v1/chat/completions", body }, signal)) {
    const delta = event.choices[0]?.delta || {};
    if (delta.content) shown.textContent = text += delta.content;
    if (delta.parts) shown.replaceChildren(...delta.parts.map(part));
  }
}

function part({ type, text, image_url: picture, codes }) {
  if (type === "text") return make("p", { textContent: text });
  if (type === "image_url") return make("img", { src: picture.url, alt: "an image of the document" });
  return make("p", { className: "wrong", textContent: `an image that broke off after ${codes} codes` });
}

/* The prompt as parts of a message: `<image:N>` is the N-th image that was inserted. */
function promptParts() {
  return $("prompt").value.split(/(<image:\d+>)/).filter((each) => each.trim()).map((each) => {
    const place = each.match(/^<image:(\d+)>$/);
    if (!place) return { type: "text", text: each };
    if (!uploads[place[1] - 1]) throw new Error(`there is no image ${place[1]}; insert it.`);
    return picturePart(uploads[place[1] - 1]);
  });
}

async function continueDocument() {
  const prompt = $("prompt").value, shown = make("div", { className: "parts" });
  await busy("Writing", async (signal) => {
    const content = promptParts();
    section(prompt).append(make("article", { className: "text" }, make("h3", { textContent: "The document goes on" }), shown));
    await chat({ content }, shown, signal, { retrieve: number("retrieve") });
  });
}

function insert(text) {
  const prompt = $("prompt");
  prompt.setRangeText(text, prompt.selectionStart, prompt.selectionEnd, "end");
  prompt.focus();
}

function insertPicture(url) {
  uploads.push(url);
  $("uploads").append(make("figure", {}, make("img", { src: url, alt: `image ${uploads.length} of the prompt` }), make("figcaption", { textContent: `<image:${uploads.length}>` })));
  insert(`<image:${uploads.length}>`);
}

function openRecipe(url, name) {
  try {
    const { job, answer } = readRecipe(url, name), card = newCard("saved");
    section(job.body.prompt).append(card.node);
    showPicture(card, answer, { ...job, body: { documents: [], ...job.body } }, model);
    say(`${name} is open.`);
  } catch (error) { say(error.message, true); }
}

async function start() {
  try {
    model = (await (await call("v1/models")).json()).data[0].id;
    $("model").textContent = model;
    say("");
  } catch (error) { say(error.message, true); }
}

const cardOf = (event) => event.target.closest("article").card;
$("results").addEventListener("again", (event) => again(cardOf(event), event.detail));
$("results").addEventListener("paint", (event) => paint(cardOf(event)));
$("results").addEventListener("ask", (event) => ask(cardOf(event), event.detail));
$("ask").addEventListener("submit", (event) => { event.preventDefault(); drawPrompt(); });
$("prompt").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit(); });
$("document").addEventListener("click", continueDocument);
$("stop").addEventListener("click", stop);
$("marks").prepend(chooser("Insert image…", insertPicture, "Insert an image into the prompt"));
$("marks").querySelectorAll("[data-mark]").forEach((each) => each.addEventListener("click", () => insert(each.dataset.mark)));
$("compare").addEventListener("change", () => { $("retrieve").disabled = $("compare").checked; });
$("open").append(chooser("Open a recipe…", openRecipe, "Open a PNG or JSON that this page saved", "image/png,application/json"));
$("key").addEventListener("change", start);
setUp(say);
start();
