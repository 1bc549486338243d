// The queue: order, edit, pause, cancel, and what failed.
import { ask, button, call, clock, content, dialog, h, icon, many, say } from "./dom.js";
import { fill, words } from "./form.js";
import { addMany } from "./list.js";
import { facts } from "./live.js";
import { openPlace } from "./router.js";

let shown = "";
let failedShown = "";

export function showQueue(queue) {
  const place = document.getElementById("queue");
  if (place.hidden) return;
  const key = JSON.stringify([queue.workers, queue.waiting.map((v) => [v.id, v.state, v.control, v.prompt, v.request.seed, v.num_frames, v.size, v.note])]);
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
    drawFailed(place).catch((error) => say(error.message, true));
  }
}

function draw(place, queue) {
  const waiting = queue.waiting.filter((video) => video.state === "queued");
  // Whoever moves a row by keys stays on it.
  const focused = place.contains(document.activeElement) ? [document.activeElement.closest("[data-job]")?.dataset.job, document.activeElement.dataset.act] : [];
  const rows = queue.waiting.map((video) => row(video, waiting.indexOf(video), waiting.length));
  const failed = place.querySelector(".failed") ?? h("section", { className: "failed stack" });
  const ids = (states) => queue.waiting.filter((video) => states.includes(video.state)).map((video) => video.id);
  const all = async (action, states) => { for (const id of ids(states)) await call("POST", `/v1/videos/${id}/${action}`).catch(() => {}); };
  place.replaceChildren(
    h("div", { className: "head" }, h("h1", {}, "Queue"), h("span", { className: "quiet" }, told(queue)),
      button("Add many", () => addMany()), rows.length ? h("span", { className: "actions" },
        ids(["queued", "running"]).length ? button("Pause all", () => all("pause", ["queued", "running"])) : "",
        ids(["paused"]).length ? button("Go on with all", () => all("resume", ["paused"])) : "",
        button("Clear all", async () => (await ask(`Give up ${many(rows.length, "video")}?`, "Give up")) && all("cancel?keep=false", ["queued", "paused", "running"]), { className: "danger" })) : ""),
    rows.length ? h("ol", { className: "rows" }, ...rows) : queue.counts.failed ? "" : h("div", { className: "empty" }, h("h2", {}, "The queue is empty"),
      h("p", {}, "What you generate lines up here. It goes on when this page is closed, and after a restart."), h("a", { className: "button", href: "/" }, "Make a clip")),
    queue.more ? h("p", { className: "quiet" }, `and ${queue.more} more`) : "", failed);
  if (focused[0]) {
    const row = place.querySelector(`[data-job="${focused[0]}"]`);
    (row?.querySelector(`[data-act="${focused[1]}"]:not(:disabled)`) ?? row?.querySelector("button:not(:disabled)"))?.focus();
  }
}

function told(queue) {
  const left = queue.waiting.filter((video) => video.state !== "paused");
  const known = left.every((video) => video.eta ?? video.render_seconds);
  const seconds = left.reduce((sum, video) => sum + (video.eta ?? video.render_seconds ?? 0), 0) / Math.max(1, queue.workers);
  const workers = queue.workers ? `${many(queue.workers, "worker")} at work` : "no worker is running: radial work starts one";
  return `${workers}${left.length && known && queue.workers ? `, about ${clock(seconds)} in all` : ""}`;
}

function row(video, place, count) {
  const act = (action) => call("POST", `/v1/videos/${video.id}/${action}`);
  const move = (step) => call("PATCH", `/v1/videos/${video.id}`, { step });
  const running = video.state === "running";
  const named = (words) => h("span", { className: "visually-hidden" }, words);
  const actions = running
    ? [button("Pause", () => act("pause"), { disabled: Boolean(video.control) }), button("Stop and keep", () => act("cancel?keep=true"), { disabled: Boolean(video.control) }),
      button("Discard", () => act("cancel?keep=false"), { className: "danger", disabled: Boolean(video.control) })]
    : [video.state === "queued" && button([icon("up"), named("Move up")], () => move("up"), { className: "bare", dataset: { act: "up" }, disabled: place === 0 }),
      video.state === "queued" && button([icon("down"), named("Move down")], () => move("down"), { className: "bare", dataset: { act: "down" }, disabled: place === count - 1 }),
      button("Edit", () => edit(video), { dataset: { act: "edit" } }),
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
  picture, h("div", { className: "what" }, h("p", { className: "prompt clamped" }, video.prompt),
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
    await call("POST", `/v1/videos/${video.id}/cancel`);
    fill(video.request);
    box.close();
    openPlace("create");
    say("It is out of the queue, and all of its settings are in the form.");
  })));
}

async function drawFailed(place) {
  const { data } = await call("GET", "/v1/videos?show=failed&limit=20");
  const section = place.querySelector(".failed");
  if (!section) return;
  const next = (video) => (/Errno -|resolve|hub/.test(video.error?.message ?? "") ? "Is this machine online? Models shows what is here." : "");
  section.replaceChildren(...(data.length ? [h("h2", {}, "Failed"), h("ol", { className: "rows" }, ...data.map((video) =>
    h("li", { dataset: { job: video.id } }, h("span", { className: "picture" }, video.size),
      h("div", { className: "what" }, h("p", { className: "prompt clamped" }, video.prompt), h("p", { className: "problem" }, video.error?.message ?? "", " ", next(video))),
      h("div", { className: "actions" }, button("Try again", () => call("POST", `/v1/videos/${video.id}/retry`), { title: "From the last step that was kept" }),
        button("Use settings", () => { fill(video.request); openPlace("create"); }), button("Log", () => log(video)),
        button("Forget", async () => { await call("DELETE", `/v1/videos/${video.id}`); failedShown = ""; }, { className: "danger" })))))] : []));
}

export async function log(video) {
  const lines = await call("GET", `/v1/videos/${video.id}/log`);
  dialog("What happened", h("ul", { className: "log" }, ...lines.map((line) => h("li", {}, h("time", {}, new Date(line.time * 1000).toLocaleString()), " ", h("span", {}, line.text)))));
}
