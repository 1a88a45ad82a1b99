// A result and how it was made, as JSON and inside a PNG; and both read back.

const KEYWORD = "cm3jax recipe";
const PATHS = ["v1/images/generations", "v1/images/edits"];

/* The recipe's image as a PNG that has the rest of it as a text (the chunk iTXt, which other
readers skip or show). */
export function withRecipe({ answer: { b64_json: content, ...answer }, ...rest }) {
  const picture = bytesOf(content);
  const text = new TextEncoder().encode(`${KEYWORD}\0\0\0\0\0${JSON.stringify({ ...rest, answer })}`);
  const chunk = new Uint8Array(12 + text.length), view = new DataView(chunk.buffer);
  view.setUint32(0, text.length);
  chunk.set(new TextEncoder().encode("iTXt"), 4);
  chunk.set(text, 8);
  view.setUint32(8 + text.length, crc(chunk.subarray(4, 8 + text.length)));
  const head = 33; // the signature and the chunk IHDR
  return new Blob([picture.subarray(0, head), chunk, picture.subarray(head)], { type: "image/png" });
}

/* The recipe in a file, given as a data URL; throws where there is none that this page could draw. */
export function readRecipe(url, name) {
  const content = url.slice(url.indexOf(",") + 1);
  let found = null;
  try {
    const bytes = bytesOf(content), picture = bytes[0] === 0x89;
    found = JSON.parse(picture ? textOf(bytes) : new TextDecoder().decode(bytes));
    if (picture) found.answer.b64_json = content;
  } catch { /* told below */ }
  const { job, answer } = found || {};
  const fits = PATHS.includes(job?.path) && typeof job.body?.prompt === "string" && Array.isArray(answer?.documents)
    && typeof answer.b64_json === "string" && Number.isFinite(answer.seed) && Number.isFinite(answer.perplexity);
  if (!fits) throw new Error(`${name} has no recipe; open a PNG or JSON that this page saved.`);
  return found;
}

function textOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset), name = new TextDecoder("latin1");
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    const content = bytes.subarray(at + 8, at + 8 + view.getUint32(at));
    if (name.decode(bytes.subarray(at + 4, at + 8)) !== "iTXt") continue;
    if (name.decode(content.subarray(0, KEYWORD.length)) === KEYWORD) return new TextDecoder().decode(content.subarray(KEYWORD.length + 5));
  }
  return "";
}

function bytesOf(content) {
  return Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
}

/* The checksum of PNG's chunks. */
function crc(bytes) {
  let rest = ~0;
  for (const byte of bytes) {
    rest ^= byte;
    for (let bit = 0; bit < 8; bit++) rest = (rest >>> 1) ^ (rest & 1 ? 0xedb88320 : 0);
  }
  return ~rest >>> 0;
}
