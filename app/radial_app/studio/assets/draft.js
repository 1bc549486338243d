// What the form holds, kept in the browser until it is changed: a reload, or a server that went away, loses no word.
const KEY = "radial-draft";
const HISTORY = "radial-prompts";

const read = (key, empty) => { try { return JSON.parse(localStorage.getItem(key)) ?? empty; } catch { return empty; } };
const write = (key, value) => { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* full, or forbidden: the form works all the same */ } };

// `request`: fields by name, those that are open left out; `file`: what it is kept as; `keep`: whether the seed stays.
export const draft = { request: { prompt: "", model: "tiny" }, file: {}, quality: "standard", keep: false, ...read(KEY, {}) };

export const keepDraft = () => write(KEY, draft);

export const prompts = () => read(HISTORY, []);

export function remember(prompt) {
  write(HISTORY, [prompt, ...prompts().filter((one) => one !== prompt)].slice(0, 40));
}

export const ownPresets = () => read("radial-presets", {});
export const keepPresets = (presets) => write("radial-presets", presets);
