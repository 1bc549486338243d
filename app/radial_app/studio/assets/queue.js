// The queue: order, edit, pause, cancel, and what failed.
import { ask, button, call, clock, dialog, h, many, say, when } from "./dom.js";
import { fillFrom } from "./form.js";
import { addMany } from "./list.js";
import { openPlace } from "./router.js";
import { row } from "./waiting.js";

let shown = "";
let failedShown = "";
const picked = new Set();

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
  for (const id of picked) if (!queue.waiting.some((video) => video.id === id && video.state !== "running")) picked.delete(id);
  const pick = (video) => { const box = h("input", { type: "checkbox", className: "pick", dataset: { act: "pick" }, ariaLabel: `Choose: ${video.prompt.slice(0, 80)}`, checked: picked.has(video.id), onchange: () => {
    picked[box.checked ? "add" : "delete"](video.id);
    draw(place, queue);
  } }); return box; };
  const rows = queue.waiting.map((video) => row(video, waiting.indexOf(video), waiting.length, video.state !== "running" && queue.waiting.length > 1 ? pick(video) : ""));
  const failed = place.querySelector(".failed") ?? h("section", { className: "failed stack" });
  const ids = (states) => queue.waiting.filter((video) => states.includes(video.state)).map((video) => video.id);
  const each = async (of, action) => { for (const id of of) await call("POST", `/v1/videos/${id}/${action}`).catch(() => {}); };
  const all = (action, states) => each(ids(states), action);
  place.replaceChildren(
    h("div", { className: "head" }, h("h1", {}, "Queue"), h("span", { className: "quiet" }, told(queue)),
      button("Add many", () => addMany()), rows.length ? h("span", { className: "actions" },
        ids(["queued", "running"]).length ? button("Pause all", () => all("pause", ["queued", "running"])) : "",
        ids(["paused"]).length ? button("Go on with all", () => all("resume", ["paused"])) : "",
        button("Clear all", async () => (await ask(`Give up ${many(rows.length, "video")}?`, "Give up")) && all("cancel?keep=false", ["queued", "paused", "running"]), { className: "danger" })) : ""),
    picked.size ? chosenBar(place, queue, each) : "",
    rows.length ? h("ol", { className: "rows" }, ...rows) : queue.counts.failed ? "" : h("div", { className: "empty" }, h("h2", {}, "The queue is empty"),
      h("p", {}, "What you generate lines up here. It goes on when this page is closed, and after a restart."), h("a", { className: "button", href: "/" }, "Make a clip")),
    queue.more ? h("p", { className: "quiet" }, `and ${queue.more} more`) : "", failed);
  if (focused[0]) {
    const row = place.querySelector(`[data-job="${focused[0]}"]`);
    (row?.querySelector(`[data-act="${focused[1]}"]:not(:disabled)`) ?? row?.querySelector("button:not(:disabled)"))?.focus();
  }
}

// What is done with several that wait at once; they keep their order among each other.
function chosenBar(place, queue, each) {
  const of = (...states) => queue.waiting.filter((video) => picked.has(video.id) && states.includes(video.state)).map((video) => video.id);
  const none = () => { picked.clear(); draw(place, queue); };
  return h("div", { className: "actions picked", role: "region", ariaLabel: "Chosen videos" }, h("strong", {}, `${many(picked.size, "video")} chosen`),
    of("queued").length ? button("To the front", async () => { for (const [at, id] of of("queued").entries()) await call("PATCH", `/v1/videos/${id}`, { place: at + 1 }); }) : "",
    of("queued").length ? button("Hold them", () => each(of("queued"), "pause")) : "", of("paused").length ? button("Go on with them", () => each(of("paused"), "resume")) : "",
    button("Cancel them", async () => {
      const ids = of("queued", "paused");
      if (await ask(`Give up ${many(ids.length, "video")}?`, "Give up")) await each(ids, "cancel");
    }, { className: "danger" }), button("Choose none", none, { className: "link" }));
}

function told(queue) {
  const left = queue.waiting.filter((video) => video.state !== "paused");
  const known = left.every((video) => video.eta ?? video.render_seconds);
  const seconds = left.reduce((sum, video) => sum + (video.eta ?? video.render_seconds ?? 0), 0) / Math.max(1, queue.workers);
  const workers = queue.workers ? `${many(queue.workers, "worker")} at work` : "no worker is running: radial work starts one";
  return `${workers}${left.length && known && queue.workers ? `, about ${clock(seconds)} in all` : ""}`;
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
        video.story ? h("a", { className: "button", href: `/story/${video.id}` }, "Open") : button("Use settings", () => { fillFrom(video); openPlace("create"); }), button("Log", () => log(video)),
        button("Forget", async () => { await call("DELETE", `/v1/videos/${video.id}`); failedShown = ""; }, { className: "danger" })))))] : []));
}

export async function log(video) {
  const lines = await call("GET", `/v1/videos/${video.id}/log`);
  dialog("What happened", h("ul", { className: "log" }, ...lines.map((line) => h("li", {}, h("time", {}, when(line.time)), " ", h("span", {}, line.text)))));
}
