// A video that waits or is being made, as a row: moved, held, edited, given up.
import { button, call, clock, content, dialog, h, icon, say } from "./dom.js";
import { editJob, words } from "./form.js";
import { openPlace } from "./router.js";

const SAID = { frames: (n) => `${n} times the frames`, scale: (n) => `${n} times as large`, size: String, aspect: String, speed: (n) => `${n} times as fast`, loop: (n) => `shown ${n} times`, reverse: () => "backwards", upscaler: (name) => `by ${name.replace(/\.safetensors$/, "")}`, sound: (name) => (name === "none" ? "silent" : "another sound") };
// What is done to a clip when it is there, or to one that was there, in words.
export const finishOf = (video) => (video.finish ? `${video.renders ? ", then " : "finished: "}${Object.entries(video.finish).map(([name, value]) => SAID[name]?.(value) ?? `${name} ${value}`).join(", ") || "joined"}${video.renders ? "" : "; "}` : "");
export const facts = (video) => `${video.renders ? "" : finishOf(video)}${video.story ? `story of ${video.story.segments}, ` : ""}${Number(video.seconds).toFixed(1)} s, ${video.size}, ${video.renders ? `seed ${video.request.seed}, ` : ""}${video.model}${video.renders ? finishOf(video) : ""}`;

// `place` among the `count` that wait; `pick` is a box to choose it by, where several are.
export function row(video, place, count, pick = "") {
  const act = (action) => call("POST", `/v1/videos/${video.id}/${action}`);
  const move = (step) => call("PATCH", `/v1/videos/${video.id}`, { step });
  const running = video.state === "running";
  const named = (words) => h("span", { className: "visually-hidden" }, words);
  const actions = running
    ? [button("Pause", () => act("pause"), { disabled: Boolean(video.control) }), button("Stop and keep", () => act("cancel?keep=true"), { disabled: Boolean(video.control) }),
      button("Discard", () => act("cancel?keep=false"), { className: "danger", disabled: Boolean(video.control) })]
    : [video.state === "queued" && button([icon("up"), named("Move up")], () => move("up"), { className: "bare", dataset: { act: "up" }, disabled: place === 0 }),
      video.state === "queued" && button([icon("down"), named("Move down")], () => move("down"), { className: "bare", dataset: { act: "down" }, disabled: place === count - 1 }),
      video.story ? h("a", { className: "button", href: `/story/${video.id}` }, "Open") : video.renders > 0 && button("Edit", () => edit(video), { dataset: { act: "edit" } }),
      video.state === "paused" ? button("Go on", () => act("resume")) : button("Hold", () => act("pause")),
      button("Cancel", () => act("cancel"), { className: "danger" })];
  const from = video.request.extend?.startsWith("video:") ? `/v1/videos/${video.request.extend.slice(6).split("/")[0]}/content?variant=thumbnail` : video.request.image ? `/v1/files/${video.request.image}` : "";
  const picture = running && video.preview ? h("img", { className: "picture", src: `${content(video, "preview")}&at=${video.preview}`, alt: "" })
    : from ? h("img", { className: "picture", src: from, alt: "" }) : h("span", { className: "picture" }, video.size);
  const line = h("li", { dataset: { job: video.id }, className: video.state, draggable: video.state === "queued",
    ondragstart: (event) => event.dataTransfer.setData("text/radial", video.id),
    ondragover: (event) => { if (video.state === "queued") { event.preventDefault(); line.classList.add("over"); } },
    ondragleave: () => line.classList.remove("over"),
    ondrop: async (event) => {
      line.classList.remove("over");
      const id = event.dataTransfer.getData("text/radial");
      event.preventDefault();
      if (id && id !== video.id) await call("PATCH", `/v1/videos/${id}`, { place: place + 1 }).catch((error) => say(error.message, true));
    } },
  pick, picture, h("div", { className: "what" }, h("p", { className: "prompt clamped" }, video.prompt),
    h("p", { className: "quiet" }, `${STATES[video.state]}${video.control ? `, to ${video.control}` : ""}${video.render_seconds ? `, about ${clock(video.render_seconds)}` : ""} · ${facts(video)}${video.note ? ` · ${video.note}` : ""}`),
    running ? h("div", { className: "bar" }, h("progress", { max: 100, ariaLabel: "Progress" }), h("span", { className: "eta quiet" })) : ""),
  h("div", { className: "actions" }, ...actions));
  return line;
}

const STATES = { running: "rendering", queued: "waits", paused: "on hold" };
const OPEN_FOR = { prompt: "Prompt", negative_prompt: "Words to avoid", seed: "Seed", num_videos: "Videos", num_frames: "Frames", height: "Height", width: "Width", fps: "Frames a second", num_inference_steps: "Steps", guidance_scale: "Guidance" };

function edit(video) {
  const long = ["prompt", "negative_prompt"];
  const fields = Object.fromEntries(Object.keys(OPEN_FOR).map((name) => [name, long.includes(name) ? h("textarea", { rows: name === "prompt" ? 4 : 2, value: video.request[name] ?? "", maxLength: 20000 })
    : h("input", { type: "number", step: "any", value: video.request[name] ?? "" })]));
  const problem = h("p", { className: "problem", role: "alert", hidden: true });
  const box = dialog("Edit", h("div", { className: "fields" }, ...Object.entries(fields).map(([name, field]) => {
    field.id = `edit-${name}`;
    return h("div", { className: `field${long.includes(name) ? " whole" : ""}` }, h("label", { htmlFor: field.id }, OPEN_FOR[name]), field);
  })), problem, h("div", { className: "actions" }, button("Save", async () => {
    const changes = {};
    for (const [name, field] of Object.entries(fields)) {
      const value = long.includes(name) ? field.value : field.value === "" ? null : Number(field.value);
      if (value !== (video.request[name] ?? (long.includes(name) ? "" : null))) changes[name] = value;
    }
    try {
      if (Object.keys(changes).length) await call("PATCH", `/v1/videos/${video.id}`, { request: changes });
      box.close();
    } catch (error) {
      problem.textContent = words(error.message);
      problem.hidden = false;
    }
  }, { className: "primary" }), button("Edit all of it in the form", async () => {
    await editJob(video);
    box.close();
    openPlace("create");
  })));
}
