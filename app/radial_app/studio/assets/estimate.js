// What the form's values make: asked whenever one of them changes. How long, whether it fits, and one click that makes it fit.
import { button, bytes, call, clock, h, many } from "./dom.js";
import { draft, keepDraft } from "./draft.js";
import { fieldOf, modelNow, redraw, words } from "./form.js";

let plan = {};
let waiting = null;
let asking = false;

export const planned = () => plan;

export async function ask(now, then) {
  waiting = now;
  if (asking) return;
  asking = true;
  try {
    while (waiting) {
      waiting = null;
      const { request } = draft;
      const fields = { ...request, prompt: request.prompt.trim() ? request.prompt : "-" };
      const found = await call("POST", "/v1/videos/check", fields).catch((error) => ({ problem: error.message, param: error.param, lost: error.lost }));
      if (waiting) continue; // another change came meanwhile
      if (found.lost) return addEventListener("radial-back", () => ask(draft, then), { once: true }); // the page says so itself
      plan = found;
      if (found.problem) showProblem(words(found.problem), found.param);
      else show(found);
      then();
    }
  } finally {
    asking = false;
  }
}

export function showProblem(message, param) {
  const near = /nearest/.test(message) && !draft.request.snap;
  document.getElementById("estimate").replaceChildren(h("p", { className: "problem", role: "alert", id: "problem" }, message),
    near ? h("div", { className: "actions" }, button("Take the nearest", takeNearest)) : "");
  const one = fieldOf(param);
  if (!one) return;
  one.control.setAttribute("aria-invalid", "true");
  one.control.setAttribute("aria-describedby", "problem");
}

async function takeNearest() {
  const { request } = await call("POST", "/v1/videos/check", { ...draft.request, prompt: draft.request.prompt.trim() || "-", snap: true });
  Object.assign(draft.request, { width: request.width, height: request.height, num_frames: request.num_frames });
  redraw();
}

function show(found) {
  const { num_frames, width, height, num_videos } = found.request;
  const seconds = found.render_seconds ?? (found.on_gpu ? found.seconds_on_h100 : null);
  const wait = seconds === null ? (found.seconds_on_h100 > 10 ? `about ${clock(found.seconds_on_h100 * num_videos)} on an H100` : "") : `about ${clock(seconds * num_videos)}`;
  const warnings = [];
  if (found.lack) warnings.push(h("p", { className: "problem", role: "alert" }, `It does not fit: this clip ${found.lack}.`));
  if (!found.on_disk) warnings.push(h("p", { className: "warn" }, `${modelNow().id} is not on this machine yet: it is downloaded first.`));
  if (!found.on_gpu && !found.lack && found.seconds_on_h100 > 10) warnings.push(h("p", { className: "warn" }, "This machine has no GPU for it: on the CPU it takes hours, if it ends at all."));
  const longer = num_frames > found.native_frames ? `${+((num_frames - found.first_frame) / (found.native_frames - found.first_frame)).toFixed(1)} times the native length` : "";
  document.getElementById("estimate").replaceChildren(
    h("p", { className: "facts-line" }, h("b", {}, `${found.seconds.toFixed(1)} s`), h("span", {}, `${width}x${height}`), longer ? h("span", {}, longer) : "", wait ? h("span", {}, wait) : "",
      found.lack ? "" : h("span", { className: "fits" }, "fits this machine")),
    ...warnings,
    found.mend ? h("div", { className: "actions" }, button(`Make it fit: ${describe(found.mend)}`, () => { Object.assign(draft.request, found.mend); keepDraft(); redraw(); }, { id: "make-it-fit" })) : "",
    ...found.notes.map((note) => h("p", { className: "quiet" }, note)),
    h("details", { className: "quiet" }, h("summary", {}, "More about it"), h("p", {}, [many(num_frames, "frame"), many(found.tokens, "token"),
      found.computed_share === null ? "" : `${Math.round(100 * found.computed_share)} % of attention computed`, found.memory ? `about ${bytes(found.memory)}` : "",
      found.render_seconds_dense ? `dense ${clock(found.render_seconds_dense)}` : ""].filter(Boolean).join(", "))));
}

const describe = ({ width, height, num_frames, precision }) => `${width}x${height}, ${many(num_frames, "frame")}${precision ? ", 8-bit weights" : ""}`;
