// What the form holds, kept in the browser until it is changed: a reload, or a server that went away, loses no word.
const KEY = "radial-draft";
const HISTORY = "radial-prompts";

const read = (key, empty) => { try { return JSON.parse(localStorage.getItem(key)) ?? empty; } catch { return empty; } };
const write = (key, value) => { try { localStorage.setItem(key, JSON.stringify(value)); } catch { /* full, or forbidden: the form works all the same */ } };

// `request`: fields by name, those that are open left out; `file`: what it is kept as; `keep`: whether the seed stays;
// `finish`: what is done to it when it is there.
export const draft = { request: { prompt: "", model: "tiny", ...read("radial-defaults", {}).request }, file: read("radial-defaults", {}).file ?? {}, quality: "standard", keep: false, ...read(KEY, {}) };

// What a clip starts from, ends on and is steered by, which is no setting.
export const BROUGHT = ["image", "last_image", "extend", "control_video", "face_video", "background_video", "mask", "references", "strength", "keyframes"];
export const withoutFiles = (request) => Object.fromEntries(Object.entries(request).filter(([name]) => !BROUGHT.includes(name)));

// What is done to a clip when it is there, where something is.
export const then = () => (Object.keys(draft.finish ?? {}).length ? { finish: draft.finish } : {});

export const keepDraft = () => write(KEY, draft);

export const prompts = () => read(HISTORY, []);

export function remember(prompt) {
  write(HISTORY, [prompt, ...prompts().filter((one) => one !== prompt)].slice(0, 40));
}

// How many steps the clip had whose quick variations these are, to make the best of them in full.
export const stepsInFull = (id) => read("radial-variations", {})[id] ?? null;
export const rememberFull = (id, steps) => write("radial-variations", Object.fromEntries([...Object.entries(read("radial-variations", {})).slice(-200), [id, steps]]));

// What a fresh form begins with.
export const defaults = () => read("radial-defaults", {});
export const keepDefaults = (values) => write("radial-defaults", values);

