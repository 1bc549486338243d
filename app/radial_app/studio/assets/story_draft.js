// What the Story tab holds, kept in the browser until it is changed.
import { h } from "./dom.js";

const KEY = "radial-story";
const read = () => { try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; } };
const FRESH = { lines: [{ prompt: "" }], fields: { model: "tiny" }, from: null, shown: "" };

// `lines`: prompt, name, look, seconds, cut, seed and remember of each; `fields`: all else that a story says; `from`: the story that it
// goes on from, with its segments that stay; `shown`: the story whose film is shown.
export const story = { ...structuredClone(FRESH), ...read() };

export function keepStory() {
  try { localStorage.setItem(KEY, JSON.stringify(story)); } catch { /* full, or forbidden: the page works all the same */ }
}

export function freshStory() {
  Object.assign(story, structuredClone(FRESH), { fields: story.fields, shown: story.shown });
  keepStory();
}

// A line as the server takes it: what is open is left out.
export const written = ({ prompt, name, look, seconds, cut, seed, remember }) => ({ prompt: prompt.trim(), ...(name?.trim() ? { name: name.trim() } : {}), ...(name?.trim() && look?.trim() ? { look: look.trim() } : {}), ...(seconds ? { seconds } : {}), ...(cut ? { cut } : {}), ...(seed === undefined || seed === null ? {} : { seed }), ...(remember ? { remember } : {}) });

// The same of a segment that the server tells of, whose prompt has the name in front.
function lineOf({ prompt, name, look, seconds, cut, seed, remember }) {
  const named = name && prompt.toLowerCase().startsWith(`${name.toLowerCase()}:`);
  return { prompt: named ? prompt.slice(name.length + 1).trim() : prompt, name: named ? prompt.slice(0, name.length) : "", look: look ?? "", seconds, cut, seed, remember };
}

// Those of a film: a look stands where it is given, and is changed there for all later lines of that name.
export function linesOf(segments) {
  const looks = {};
  return segments.map(lineOf).map((line) => {
    const known = looks[line.name.toLowerCase()];
    looks[line.name.toLowerCase()] = line.look;
    return { ...line, look: line.look === known ? "" : line.look };
  });
}

export const memoryWords = (remember) => ({ pin: "always remembered", drop: "never remembered" }[remember] ?? (remember ? `remembered as segment ${remember}` : "remembered"));

// How a segment is remembered, of so many; `change` gets "pin", "drop", the number of another one, or null.
export function memoryChoice(what, number, count, remember, change) {
  const others = Array.from({ length: count }, (_, index) => index + 1).filter((one) => one !== number);
  const control = h("select", { className: "memory", ariaLabel: `Memory of ${what} ${number}`, title: "What later segments remember of it", onchange: () => change(/^\d+$/.test(control.value) ? Number(control.value) : control.value || null) },
    ...["", "pin", "drop", ...others].map((one) => h("option", { value: String(one), selected: (remember ?? "") === one }, memoryWords(one))));
  return control;
}
