// The live side of Create: what is rendered now, and the last video when nothing is.
import { button, call, clock, content, h, openPage } from "./dom.js";

const STAGES = { load: "Loading the model", download: "Downloading the model", encode: "Reading the prompt", denoise: "Denoising", decode: "Decoding",
  write: "Writing the file" };
let shown = "";
let preview = { id: "", url: "" };

export async function showLive(queue) {
  const place = document.getElementById("live");
  if (!place) return;
  const running = queue.waiting.filter((video) => video.state === "running");
  if (running.length) return drawRunning(place, running, queue);
  await drawLast(place, queue);
}

function drawRunning(place, running, queue) {
  const key = `running ${running.map((video) => video.id).join(" ")}`;
  if (shown !== key) {
    shown = key;
    place.replaceChildren(...running.map(card), h("p", { className: "radial-quiet rest" }));
  }
  for (const video of running) {
    const box = place.querySelector(`[data-job="${video.id}"]`);
    const bar = box.querySelector("progress");
    if (video.stage === "denoise" && video.steps) bar.value = video.progress;
    else if (video.stage === "download" && video.steps) bar.value = (100 * video.step) / video.steps;
    else bar.removeAttribute("value");
    const asked = { pause: " - pauses after this step", finish: " - ends after this step", cancel: " - ends" };
    const step = !video.step ? "" : video.stage === "denoise" ? `, step ${video.step} of ${video.steps}` : video.stage === "download" ? `, ${(video.step / 1024).toFixed(1)} of ${(video.steps / 1024).toFixed(1)} GB` : "";
    box.querySelector(".stage").textContent =
      `${STAGES[video.stage] ?? video.stage}${step}${asked[video.control] ?? ""}`;
    box.querySelector(".eta").textContent = video.eta ? `${clock(video.eta)} left` : "";
    refreshPreview(box.querySelector("img"), video);
  }
  const waiting = queue.waiting.filter((video) => video.state === "queued").length + queue.more;
  place.querySelector(".rest").textContent = waiting ? `${waiting} more in the queue` : "";
}

function card(video) {
  const act = (action) => call("POST", `/v1/videos/${video.id}/${action}`);
  return h("section", { className: "radial-card", dataset: { job: video.id } },
    h("div", { className: "screen" }, h("img", { alt: "What the clip is becoming", hidden: true }),
      h("p", { className: "radial-quiet wait" }, "A first look comes after some steps")),
    h("div", { className: "bar" }, h("progress", { max: 100, ariaLabel: "Progress" })),
    h("p", { className: "line" }, h("span", { className: "stage" }), h("span", { className: "eta" })),
    h("p", { className: "prompt" }, video.prompt),
    h("p", { className: "radial-quiet" }, `${video.size}, ${video.num_frames} frames, seed ${video.request.seed}, ${video.model}`),
    h("div", { className: "actions" },
      button("Pause", () => act("pause")),
      button("Stop and keep", () => act("cancel?keep=true"), { title: "Decode what there is after this step" }),
      button("Discard", () => act("cancel?keep=false"), { className: "danger" })));
}

function refreshPreview(image, video) {
  if (!video.preview) return;
  const url = `${content(video, "preview")}&at=${video.preview}`;
  if (preview.id === video.id && preview.url === url) return;
  preview = { id: video.id, url };
  const next = new Image();
  next.onload = () => {
    image.src = next.src;
    image.hidden = false;
    image.parentElement.querySelector(".wait").hidden = true;
  };
  next.src = url;
}

async function drawLast(place, queue) {
  const waiting = queue.waiting.filter((video) => video.state === "queued").length + queue.more;
  const done = (queue.counts.done ?? 0) + (queue.counts.cancelled ?? 0) + (queue.counts.failed ?? 0);
  const key = `last ${done} ${waiting} ${queue.workers}`;
  if (shown === key) return;
  shown = key;
  const page = await call("GET", "/v1/videos?show=finished&limit=1");
  if (shown !== key) return;
  const [video] = page.data;
  const note = waiting
    ? h("p", { className: "radial-quiet rest" }, queue.workers ? `${waiting} in the queue, about to begin`
      : `${waiting} in the queue, and no worker renders: radial work starts one`)
    : null;
  if (!video) {
    place.replaceChildren(h("section", { className: "radial-card empty" },
      h("div", { className: "screen" }, h("p", { className: "radial-quiet" }, "Your clip will be shown here while it is made.")),
      h("p", {}, "Write what it shows, and press Generate or Ctrl+Enter.")), ...(note ? [note] : []));
    return;
  }
  if (video.status === "failed") {
    place.replaceChildren(h("section", { className: "radial-card", dataset: { job: video.id } },
      h("p", { className: "radial-problem", role: "alert" }, video.error?.message ?? video.state),
      h("p", { className: "prompt" }, video.prompt),
      h("div", { className: "actions" },
        button("Try again", () => call("POST", `/v1/videos/${video.id}/retry`)),
        button("Use these settings", () => window.radial.use(video.request)))), ...(note ? [note] : []));
    return;
  }
  place.replaceChildren(h("section", { className: "radial-card", dataset: { job: video.id } },
    h("div", { className: "screen" }, player(video)),
    h("p", { className: "prompt" }, video.prompt),
    h("p", { className: "radial-quiet" }, `${video.size}, ${video.num_frames} frames, seed ${video.request.seed}, ${video.model}`),
    h("div", { className: "actions" },
      button("Open in the gallery", async () => { openPage("gallery"); window.radial.openVideo(video.id); }),
      button("Use these settings", () => window.radial.use(video.request)),
      button("Extend this clip", () => window.radial.extend(video)),
      h("a", { href: `${content(video, "video")}&download=true`, download: "" }, "Download"))),
    ...(note ? [note] : []));
}

export function player(video, index = 0) {
  if (!video.files.length) return h("p", { className: "radial-quiet" }, "no file");
  if (/\.(gif|webp|png)$/.test(video.files[index]?.name ?? "")) return h("img", { src: content(video, "video", index), alt: video.prompt });
  return h("video", { src: content(video, "playable", index), controls: true, loop: true, muted: true, playsInline: true,
    autoplay: true, preload: "metadata" });
}
