// The queue: order, edit, pause, cancel, and what failed.
import { button, call, clock, dialog, h, say } from "./dom.js";

let shown = "";
let failedShown = "";

export function showQueue(queue) {
  const place = document.getElementById("queue");
  if (!place || !place.offsetParent) return;
  const key = JSON.stringify(queue.waiting.map((v) => [v.id, v.state, v.control, v.prompt, v.request.seed, v.num_frames, v.size, v.note]));
  if (shown !== key) {
    shown = key;
    draw(place, queue);
  }
  for (const video of queue.waiting) {
    if (video.state !== "running") continue;
    const row = place.querySelector(`[data-job="${video.id}"]`);
    row.querySelector("progress").value = video.progress;
    row.querySelector(".eta").textContent = video.eta ? `${clock(video.eta)} left` : video.stage;
  }
  const failed = `${queue.counts.failed ?? 0}`;
  if (failedShown !== failed) {
    failedShown = failed;
    drawFailed(place);
  }
}

function draw(place, queue) {
  const waiting = queue.waiting.filter((video) => video.state === "queued");
  const rows = queue.waiting.map((video) => row(video, waiting.indexOf(video), waiting.length));
  const failed = place.querySelector(".failed") ?? h("section", { className: "failed" });
  const empty = h("div", { className: "radial-empty" }, h("h3", {}, "Nothing waits"),
    h("p", {}, "What you generate lines up here. It goes on when this page is closed, and after a restart."));
  place.replaceChildren(
    h("div", { className: "head" }, h("h2", {}, "Queue"),
      h("span", { className: "radial-quiet" }, workers(queue))),
    rows.length ? h("ol", { className: "rows" }, ...rows) : empty,
    queue.more ? h("p", { className: "radial-quiet" }, `and ${queue.more} more`) : "", failed);
}

function workers(queue) {
  return queue.workers === 1 ? "one worker renders" : queue.workers ? `${queue.workers} workers render` : "no worker is running";
}

function row(video, place, count) {
  const act = (action) => call("POST", `/v1/videos/${video.id}/${action}`);
  const move = (step) => call("PATCH", `/v1/videos/${video.id}`, { step });
  const running = video.state === "running";
  const actions = running
    ? [button("Pause", () => act("pause")), button("Stop and keep", () => act("cancel?keep=true")),
      button("Discard", () => act("cancel?keep=false"), { className: "danger" })]
    : [video.state === "queued" && button("↑", () => move("up"), { ariaLabel: "Move up", disabled: place === 0 }),
      video.state === "queued" && button("↓", () => move("down"), { ariaLabel: "Move down", disabled: place === count - 1 }),
      button("Edit", () => edit(video)),
      video.state === "paused" ? button("Go on", () => act("resume")) : button("Hold", () => act("pause")),
      button("Cancel", () => act("cancel"), { className: "danger" })];
  return h("li", { dataset: { job: video.id }, className: video.state },
    h("div", { className: "what" }, h("p", { className: "prompt" }, video.prompt),
      h("p", { className: "radial-quiet" }, `${video.state}${video.control ? `, to ${video.control}` : ""} · ${video.size}, ${video.num_frames} frames, seed ${video.request.seed}, ${video.model}${video.note ? ` · ${video.note}` : ""}`),
      running ? h("div", { className: "bar" }, h("progress", { max: 100, ariaLabel: "Progress" }), h("span", { className: "eta" })) : ""),
    h("div", { className: "actions" }, ...actions));
}

function edit(video) {
  const fields = {
    prompt: h("textarea", { rows: 4, value: video.prompt, maxLength: 20000 }),
    seed: h("input", { type: "number", value: video.request.seed, min: -1 }),
    num_frames: h("input", { type: "number", value: video.num_frames, min: 1, max: 4097 }),
    num_inference_steps: h("input", { type: "number", value: video.request.num_inference_steps, min: 1, max: 1000 }),
    guidance_scale: h("input", { type: "number", step: "any", value: video.request.guidance_scale, min: 0, max: 100 }),
  };
  const labels = { prompt: "Prompt", seed: "Seed", num_frames: "Frames", num_inference_steps: "Steps", guidance_scale: "Guidance" };
  const problem = h("p", { className: "radial-problem", role: "alert", hidden: true });
  const box = dialog("Edit", ...Object.entries(fields).map(([name, field]) => h("label", {}, labels[name], field)), problem,
    h("div", { className: "actions" }, button("Save", async () => {
      const changes = {};
      for (const [name, field] of Object.entries(fields)) {
        const value = name === "prompt" ? field.value : Number(field.value);
        if (value !== video.request[name]) changes[name] = value;
      }
      try {
        if (Object.keys(changes).length) await call("PATCH", `/v1/videos/${video.id}`, { request: changes });
        box.close();
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = false;
      }
    }, { className: "primary" }), button("Copy all of it to the form", async () => {
      window.radial.use(video.request);
      box.close();
      say("Its settings are in the form. It stays in the queue until you cancel it.");
    })));
}

async function drawFailed(place) {
  const { data } = await call("GET", "/v1/videos?show=failed&limit=20");
  const section = place.querySelector(".failed");
  if (!section) return;
  section.replaceChildren(...(data.length ? [h("h2", {}, "Failed"), h("ol", { className: "rows" }, ...data.map((video) =>
    h("li", { dataset: { job: video.id } },
      h("div", { className: "what" }, h("p", { className: "prompt" }, video.prompt),
        h("p", { className: "radial-problem" }, video.error?.message ?? "")),
      h("div", { className: "actions" },
        button("Try again", () => call("POST", `/v1/videos/${video.id}/retry`), { title: "From the last step that was kept" }),
        button("Use settings", () => window.radial.use(video.request)),
        button("Log", () => log(video)),
        button("Forget", async () => { await call("DELETE", `/v1/videos/${video.id}`); failedShown = ""; }, { className: "danger" })))))] : []));
}

export async function log(video) {
  const lines = await call("GET", `/v1/videos/${video.id}/log`);
  dialog("What happened", h("ul", { className: "log" }, ...lines.map((line) =>
    h("li", {}, h("time", {}, new Date(line.time * 1000).toLocaleString()), " ", h("span", {}, line.text)))));
}
