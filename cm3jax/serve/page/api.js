// The server's API: requests, streams of events, documents of the bank.

import { $, png } from "./dom.js";

const known = new Map(); // documents of the bank, by key

export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) $("keyrow").hidden = false;
  const said = await answer.json().catch(() => null);
  throw new Error(said?.error?.message || `the server answered ${answer.status}.`);
}

/* The events of a job, `{path, body, files}`: a form if it has files, else JSON. */
export async function* stream({ path, body, files }, signal) {
  const asked = { ...body, stream: true };
  const sent = files ? { body: await form(asked, files) }
    : { body: JSON.stringify(asked), headers: { "Content-Type": "application/json" } };
  yield* events(await call(path, { method: "POST", signal, ...sent }));
}

async function form(body, files) {
  const out = new FormData();
  for (const [name, url] of Object.entries(files)) out.append(name, await (await fetch(url)).blob(), `${name}.png`);
  for (const [name, value] of Object.entries(body)) {
    if (value !== undefined) out.append(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  return out;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (left + value).split("\n\n");
      left = parts.pop();
      for (const part of parts) {
        const data = part.split("\n").find((line) => line.startsWith("data: "));
        if (!data || data === "data: [DONE]") continue;
        const event = JSON.parse(data.slice(6));
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening hangs up: the server draws no further
  }
}

/* A document of the bank, `{text, image, source, licence}`, its image as a data URL; `{}` where it
can't be had. */
export function bankDocument(key) {
  if (!known.has(key)) known.set(key, fetchDocument(key));
  return known.get(key);
}

async function fetchDocument(key) {
  try {
    const { b64_json: content, ...found } = await (await call(`v1/documents/${encodeURIComponent(key)}`)).json();
    return { ...found, image: content ? png(content) : "" };
  } catch {
    known.delete(key);
    return {}; // taken out of the bank, or asked again later
  }
}
