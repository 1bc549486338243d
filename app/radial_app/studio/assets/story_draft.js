// What the Story tab holds, kept in the browser until it is changed.
const KEY = "radial-story";
const read = () => { try { return JSON.parse(localStorage.getItem(KEY)) ?? {}; } catch { return {}; } };
const FRESH = { lines: [{ prompt: "" }], fields: { model: "tiny" }, from: null, shown: "" };

// `lines`: prompt, name, seconds, cut and seed of each; `fields`: all else that a story says; `from`: the story that it
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
export const written = ({ prompt, name, seconds, cut, seed }) => ({ prompt: prompt.trim(), ...(name?.trim() ? { name: name.trim() } : {}), ...(seconds ? { seconds } : {}), ...(cut ? { cut } : {}), ...(seed === undefined || seed === null ? {} : { seed }) });

// The same of a segment that the server tells of, whose prompt has the name in front.
export function lineOf({ prompt, name, seconds, cut, seed }) {
  const named = name && prompt.toLowerCase().startsWith(`${name.toLowerCase()}:`);
  return { prompt: named ? prompt.slice(name.length + 1).trim() : prompt, name: named ? prompt.slice(0, name.length) : "", seconds, cut, seed };
}
