// Elements, made without HTML: every text stays a text.

export const $ = (id) => document.getElementById(id);

/* An element with properties (`ariaLabel` among them), and children that are nodes or texts. */
export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/* A button; `label` is what a screen reader says where `text` by itself would say too little. */
export function button(text, onclick, label = text) {
  return make("button", { type: "button", textContent: text, ariaLabel: label, onclick });
}

const PICTURES = "image/png,image/jpeg,image/webp,image/gif";

/* A button that asks for a file; `chosen` gets it as a data URL, its name, and the button. */
export function chooser(text, chosen, label = text, accept = PICTURES) {
  const input = make("input", { type: "file", accept }), shown = button(text, () => input.click(), label);
  input.addEventListener("change", async () => {
    const file = input.files[0];
    if (file) chosen(await dataUrl(file), file.name, shown);
    input.value = ""; // the same file may be chosen again
  });
  return shown;
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file can't be read."));
    reader.readAsDataURL(blob);
  });
}

export const png = (content) => `data:image/png;base64,${content}`;

/* Text of at most this many characters. */
export const brief = (text, most = 40) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/* Tell the page, from a node inside it. */
export function tell(node, name, detail) {
  node.dispatchEvent(new CustomEvent(name, { bubbles: true, detail }));
}
