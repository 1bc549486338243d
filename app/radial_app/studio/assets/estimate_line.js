// What the form's values make: asked whenever one of them changes, and told in one line below the prompt.
import { call, clock, h } from "./dom.js";

let plan = {};
let waiting = null; // the latest values, while an answer is under way
let asking = false;

export const planned = () => plan;

export async function ask(values, then) {
  waiting = values;
  if (asking) return;
  asking = true;
  try {
    while (waiting) {
      const now = waiting;
      waiting = null;
      const found = await call("POST", "/studio/check", now).catch((error) => ({ problem: error.message }));
      if (waiting) continue; // another change came meanwhile
      plan = found;
      show(found);
      then();
    }
  } finally {
    asking = false;
  }
}

function show(found) {
  const place = document.getElementById("estimate-line");
  if (!place) return setTimeout(() => show(plan), 50); // Gradio is still drawing
  place.replaceChildren(found.problem ? h("p", { className: "radial-problem", role: "alert" }, found.problem) : line(found));
}

function line(found) {
  const { num_frames, width, height, num_videos } = found.request;
  const parts = [h("b", {}, `${found.seconds} s`), `${num_frames} frames`, `${width}x${height}`];
  if (num_frames > found.native_frames) parts.push(`${(num_frames / found.native_frames).toFixed(1)} times the native length`);
  if (found.computed_share !== null) parts.push(`${Math.round(100 * found.computed_share)} % of attention computed`);
  if (found.render_seconds !== null) {
    const dense = found.render_seconds_dense;
    parts.push(`about ${clock(found.render_seconds * num_videos)}${dense ? ` (dense ${clock(dense)})` : ""}`);
  } else if (found.seconds_on_h100 > 10) parts.push(`about ${clock(found.seconds_on_h100 * num_videos)} on an H100`);
  if (found.memory !== null) parts.push(found.memory > 1e8 ? `about ${(found.memory / 1e9).toFixed(1)} GB` : `about ${Math.round(found.memory / 1e6)} MB`);
  return h("div", { className: "radial-estimate" }, h("p", {}, parts.flatMap((part, index) => (index ? [" \u00b7 ", part] : [part]))),
    found.notes.map((note) => h("p", {}, note)));
}
