// A card: an image as it comes, then what made it and what can be done with it.

import { bankDocument } from "./api.js";
import { documentList, pinned } from "./documents.js";
import { button, chooser, make, png, tell } from "./dom.js";
import { heatMap } from "./heat.js";
import { withRecipe } from "./recipe.js";

let count = 0;

/* An empty card. */
export function newCard(title) {
  const heading = make("h3", { id: `card${(count += 1)}`, textContent: title, tabIndex: -1 });
  const picture = make("img", { alt: "not drawn yet" }), rest = make("div", { className: "rest" });
  const stack = make("div", { className: "stack" }, picture), progress = make("p", { className: "about" });
  const node = make("article", { ariaBusy: "true" }, heading, make("div", { className: "body" }, make("div", {}, stack, progress), rest));
  node.setAttribute("aria-labelledby", heading.id);
  node.addEventListener("heat", ({ detail }) => {
    stack.replaceChildren(picture, ...(detail ? [heatMap(detail.heat, detail.most)] : []));
  });
  return { node, heading, picture, progress, rest, scores: {} };
}

/* An image whose rest is grey. */
export function showRows(card, event) {
  card.picture.src = png(event.b64_json);
  card.picture.alt = `unfinished, ${event.rows} rows so far`;
  card.progress.textContent = `row ${event.rows}`;
}

/* What ended a card's drawing early. */
export function showFailure(card, message) {
  card.node.ariaBusy = "false";
  card.progress.textContent = message;
  card.progress.className = "wrong";
}

/* An image that is done. Tells `again` for changes of it, `paint` and `ask` for questions. */
export function showPicture(card, answer, job, model) {
  card.node.ariaBusy = "false";
  card.picture.alt = `an image of: ${job.body.prompt}`;
  card.progress.textContent = `seed ${answer.seed}, sample ${answer.sample + 1} · perplexity ${answer.perplexity.toFixed(2)}`;
  if (!answer.b64_json) return showFailure(card, "the model drew no image.");
  card.picture.src = png(answer.b64_json);
  answer.documents.forEach((found) => { if (found.key && found.score !== null) card.scores[found.key] = found.score; });
  Object.assign(card, { answer, job, said: make("div", { role: "log", ariaLabel: "Answers" }) });
  card.node.card = card; // where the page finds it
  const found = answer.documents.length, asked = (job.body.retrieve || 0) + (job.body.documents || []).length;
  card.rest.replaceChildren(
    ...(found < asked ? [make("p", { className: "about", textContent: `${found} of ${asked} documents found` })] : []),
    ...(found ? [documentList(answer, job.body, card.scores)] : []),
    questions(card), tools(card, model), card.said,
  );
}

function tools(card, model) {
  const { answer, job } = card;
  const add = (image, _, node) => tell(node, "again", {
    changes: { documents: [...pinned(answer, job.body), { image }], retrieve: 0, exclude: [], weigh: {} },
    words: "with your document",
  });
  return make("div", { className: "row" },
    button("Paint over", (event) => tell(event.target, "paint")),
    button("Another seed", (event) => tell(event.target, "again", { changes: { seed: undefined }, words: "another seed" })),
    chooser("Add a document…", add, "Add an image of yours as a document"),
    ...saving(card, model));
}

function questions(card) {
  const text = make("input", { type: "text", ariaLabel: "A question about the image, or a change of it", placeholder: "a question, or a change" });
  const ask = (task) => () => tell(text, "ask", { task, text: text.value.trim() });
  text.addEventListener("keydown", (event) => { if (event.key === "Enter") ask("vqa")(); });
  return make("div", { className: "row" }, text, button("Ask", ask("vqa")), button("Change", ask("editing")), button("Caption", ask("caption")));
}

/* Buttons that save the image with its recipe, and both as JSON with the documents shown. */
function saving(card, model) {
  const { answer, job } = card, name = `cm3jax-${answer.seed}-${answer.sample}`;
  const download = (suffix, content) => button(`Save ${suffix.toUpperCase()}`, async () => {
    const href = URL.createObjectURL(content(await recipe()));
    make("a", { download: `${name}.${suffix}`, href }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
  }, suffix === "png" ? "Save the image as a PNG that has its recipe" : "Save image, recipe and documents as JSON");
  const recipe = async () => ({ made: "cm3jax", model, job, answer, documents: await Promise.all(answer.documents.map(
    async (found) => (found.key ? { ...found, ...(await bankDocument(found.key)) } : { ...found, ...job.body.documents[found.given] }))) });
  return [download("png", withRecipe), download("json", (all) => new Blob([JSON.stringify(all, null, 1)], { type: "application/json" }))];
}
