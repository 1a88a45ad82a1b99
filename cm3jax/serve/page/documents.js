// The documents that an image was drawn with: what they are, what each did, and changes to them.

import { bankDocument } from "./api.js";
import { brief, button, chooser, make, tell } from "./dom.js";
import { heatMap, told } from "./heat.js";

/* The same documents, each by itself: what a change of one leaves as it was. */
export function pinned(answer, body) {
  return answer.documents.map((found) => (found.key ? { key: found.key } : body.documents[found.given]));
}

/* A list of the documents of an answer. Tells `again` with the changes of the request and what they
are, and `heat` with the map of what a document did, or null. */
export function documentList(answer, body, scores) {
  const list = make("ul", { className: "documents", ariaLabel: "Documents" });
  const most = Math.max(...answer.documents.flatMap((found) => found.heat || []).flat().map(Math.abs), 1e-9);
  answer.documents.forEach((_, place) => list.append(item(place, answer, body, scores, most)));
  return list;
}

function item(place, answer, body, scores, most) {
  const found = answer.documents[place], own = found.key ? null : body.documents[found.given];
  const picture = make("img", { alt: "", hidden: true }), words = make("p"), about = make("p", { className: "about" });
  const changes = make("div", { className: "row", role: "group" });
  const node = make("li", {}, picture, make("div", {}, words, about, ...did(found, most), changes));
  const show = ({ text, image }, fallback) => {
    const name = text || fallback;
    words.textContent = name;
    picture.hidden = !image;
    if (image) Object.assign(picture, { src: image, alt: `the image of the document: ${name}` });
    changes.ariaLabel = `Document ${place + 1}: ${name}`;
    changes.replaceChildren(...controls(place, answer, body, scores, name));
  };
  show(own || {}, own ? "your document" : found.key);
  if (own) about.textContent = "yours";
  else {
    const score = found.score ?? scores[found.key];
    about.textContent = [score === undefined ? "no score" : `score ${score.toFixed(2)}`, found.source, found.licence].filter(Boolean).join(" · ");
    about.title = found.key;
    bankDocument(found.key).then((known) => show(known, found.key));
  }
  return node;
}

function controls(place, answer, body, scores, name) {
  const found = answer.documents[place], all = pinned(answer, body);
  const again = (changes, words) => (event) => tell(event.target, "again", { changes, words });
  const kept = { retrieve: 0, exclude: [], weigh: {} };
  const rest = all.filter((_, each) => each !== place);
  const swap = (image) => all.map((one, each) => (each === place ? { image } : one));
  const out = [
    button("Remove", again({ ...kept, documents: rest }, `without “${brief(name)}”`), `Remove ${name}`),
    chooser("Replace…", (image, _, node) => tell(node, "again", {
      changes: { ...kept, documents: swap(image) }, words: `your image for “${brief(name)}”`,
    }), `Replace ${name} by an image of yours`),
  ];
  if (!found.key || found.score === null) return out;
  const exclude = [...(body.exclude || []), found.key];
  const factor = make("input", { type: "number", min: -10, max: 10, step: 0.05, value: body.weigh?.[found.key] ?? 1, ariaLabel: `Factor of the score of ${name}` });
  const weigh = () => tell(factor, "again", {
    changes: { weigh: { ...body.weigh, [found.key]: Number(factor.value) } },
    words: `“${brief(name)}” weighed ${Number(factor.value)}`,
  });
  factor.addEventListener("keydown", (event) => { if (event.key === "Enter") weigh(); });
  return [...out,
    button("Another", again({ exclude }, `another for “${brief(name)}”`), `Retrieve another document in place of ${name}`),
    make("span", { className: "pair" }, factor, button("Weigh", weigh, `Weigh ${name} by this factor`))];
}

/* What a document did, where the answer tells it. */
function did(found, most) {
  if (found.log_probability === undefined) return [];
  const gain = found.log_probability;
  const copied = (found.copied_share ?? null) === null ? "" : ` · ${Math.round(100 * found.copied_share)} % of the codes as in its image`;
  const words = `${Math.abs(gain).toFixed(1)} nats ${gain < 0 ? "less likely" : "likelier"} with it${copied}`;
  if (!found.heat) return [make("p", { className: "did", textContent: words })];
  const toggle = button("Where", () => {
    const on = toggle.ariaPressed !== "true";
    toggle.closest("ul").querySelectorAll("[aria-pressed]").forEach((each) => { each.ariaPressed = "false"; });
    toggle.ariaPressed = String(on);
    tell(toggle, "heat", on ? { heat: found.heat, most } : null);
  }, `Where in the image: ${told(found.heat)}`);
  toggle.ariaPressed = "false";
  toggle.prepend(heatMap(found.heat, most));
  return [make("p", { className: "did" }, toggle, make("span", { textContent: words }))];
}
