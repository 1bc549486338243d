// The live side of Create: what is rendered now, the last video when nothing is, examples when there is none, and what
// was made lately.
import { button, call, clock, content, h } from "./dom.js";
import { fill, fillFrom } from "./form.js";
import { extend, isDraft, promote, startFrom } from "./start_from.js";
import { facts, row } from "./waiting.js";

const STAGES = { load: "Loading the model", download: "Downloading the model", encode: "Reading the prompt", denoise: "Making the clip", decode: "Decoding the frames", write: "Writing the file", finish: "Finishing the frames" };
const ASKED = { pause: " - pauses after this step", finish: " - ends after this step", cancel: " - ends" };
export const EXAMPLES = ["a large red star moves from left to right on a striped background", "a purple triangle grows on a grey background",
  "a small green square rises on a dotted background", "a white ring turns on a dark background"];
let shown = "";
let chosen = null; // a video of the filmstrip
let preview = { id: "", url: "" };

export function buildLive(place) {
  place.append(h("div", { id: "now", className: "stack" }), h("nav", { className: "filmstrip", ariaLabel: "Made lately", hidden: true }),
    h("details", { className: "card", ontoggle: (event) => event.target.open && dispatchEvent(new Event("radial-plan-wanted")) }, h("summary", {}, "What attention computes"), h("div", { id: "plan" })));
}

export async function showLive(queue) {
  const place = document.getElementById("now");
  if (!place) return;
  const running = queue.waiting.filter((video) => video.state === "running");
  await Promise.all([running.length && !chosen ? drawRunning(place, running, queue) : drawLast(place, queue), drawStrip(queue)]);
}

export function showQueued(queue) {
  chosen = null;
  if (queue) showLive(queue);
  const place = document.getElementById("now");
  if (place.getBoundingClientRect().top > innerHeight * 0.8) place.scrollIntoView({ block: "start" });
}

function drawRunning(place, running, queue) {
  const key = `running ${running.map((video) => video.id).join(" ")}`;
  if (shown !== key) {
    shown = key;
    place.replaceChildren(...running.map(card), h("div", { className: "next" }));
  }
  for (const video of running) {
    const box = place.querySelector(`[data-job="${video.id}"]`);
    const bar = box.querySelector("progress");
    if (["denoise", "finish"].includes(video.stage) && video.steps) bar.value = video.progress;
    else if (video.stage === "download" && video.steps) bar.value = (100 * video.step) / video.steps;
    else bar.removeAttribute("value");
    const step = !video.step ? "" : video.stage === "denoise" ? `, step ${video.step} of ${video.steps}` : video.stage === "finish" ? `, ${video.step} of ${video.steps}` : video.stage === "download" ? `, ${(video.step / 1024).toFixed(1)} of ${(video.steps / 1024).toFixed(1)} GB` : "";
    const segment = video.story && video.stage === "denoise" ? `, segment ${video.story.segment} of ${video.story.segments}` : "";
    const looked = video.recall ? `, recall ${Math.round(100 * video.recall)} %, off by ${Number(video.attention_error.toPrecision(2))}` : "";
    box.querySelector(".stage").textContent = `${STAGES[video.stage] ?? video.stage}${segment}${step}${looked}${ASKED[video.control] ?? ""}`;
    box.querySelector(".eta").textContent = video.eta ? `${clock(video.eta)} left` : "";
    // What was asked for once cannot be asked for otherwise until the step has ended.
    for (const one of box.querySelectorAll(".actions button")) one.disabled = Boolean(video.control);
    refreshPreview(box.querySelector("img"), video);
  }
  drawNext(place.querySelector(".next"), queue);
}

// The next ones that wait, handled here as in the queue.
function drawNext(place, queue) {
  const waiting = queue.waiting.filter((video) => video.state !== "running");
  const key = JSON.stringify(waiting.slice(0, 4).map((video) => [video.id, video.state, video.prompt, video.note])) + waiting.length;
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const queued = waiting.filter((video) => video.state === "queued");
  const more = waiting.length + queue.more - 3;
  place.replaceChildren(...(waiting.length ? [h("h2", {}, "Next"), h("ol", { className: "rows" }, ...waiting.slice(0, 3).map((video) => row(video, queued.indexOf(video), queued.length))),
    more > 0 ? h("a", { className: "quiet rest", href: "/queue" }, `${more} more in the queue`) : ""] : []));
}

function card(video) {
  const act = async (action) => {
    const all = [...document.querySelectorAll(`#now [data-job="${video.id}"] .actions button`)];
    for (const one of all) one.disabled = true; // at once: what is asked for first is what happens
    try {
      await call("POST", `/v1/videos/${video.id}/${action}`);
    } catch (error) {
      for (const one of all) one.disabled = false;
      throw error;
    }
  };
  return h("section", { className: "card", dataset: { job: video.id }, ariaLabel: "Being made" },
    h("div", { className: "screen" }, h("img", { alt: "What the clip is becoming", hidden: true }), h("p", { className: "quiet wait" }, "A first look comes after some steps")),
    h("div", { className: "bar" }, h("progress", { max: 100, ariaLabel: "Progress" })),
    h("p", { className: "line" }, h("span", { className: "stage" }), h("span", { className: "eta" })),
    h("p", { className: "prompt clamped" }, video.prompt), h("p", { className: "quiet" }, facts(video)),
    h("div", { className: "actions" }, video.story ? h("a", { className: "button", href: `/story/${video.id}` }, "Open the story") : "", button("Pause", () => act("pause")),
      button("Stop and keep", () => act("cancel?keep=true"), { title: "Ends after this step, with what there is" }), button("Discard", () => act("cancel?keep=false"), { className: "danger" })));
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
  const key = `last ${chosen?.id} ${JSON.stringify(queue.counts)} ${waiting} ${queue.workers}`;
  if (shown === key) return;
  shown = key;
  const video = chosen ?? (await call("GET", "/v1/videos?show=finished&limit=1")).data[0];
  if (shown !== key) return;
  const note = waiting && !chosen ? h("p", { className: "quiet rest" }, queue.workers ? `${waiting} in the queue, about to begin` : `${waiting} in the queue, and nobody renders: radial work starts a worker`) : "";
  if (!video) place.replaceChildren(empty(), note);
  else if (video.status === "failed") place.replaceChildren(failed(video), note);
  else place.replaceChildren(done(video), note);
}

const empty = () => h("section", { className: "card", ariaLabel: "Examples" }, h("h2", {}, "Your clip is shown here while it is made"),
  h("p", { className: "quiet" }, "Write what it shows, or begin with one of these:"),
  h("div", { className: "examples" }, ...EXAMPLES.map((prompt) => button(prompt, () => { fill({ prompt, model: "tiny" }, {}); document.getElementById("generate").focus(); }))));

const failed = (video) => h("section", { className: "card", dataset: { job: video.id }, ariaLabel: "Failed" }, h("p", { className: "problem" }, video.error?.message ?? video.state), h("p", { className: "prompt clamped" }, video.prompt),
  h("div", { className: "actions" }, button("Try again", () => call("POST", `/v1/videos/${video.id}/retry`)), video.story ? h("a", { className: "button", href: `/story/${video.id}` }, "Open the story") : button("Use these settings", () => fillFrom(video))));

const done = (video) => h("section", { className: "card", dataset: { job: video.id }, ariaLabel: "Made" }, h("div", { className: "screen" }, player(video)), h("p", { className: "prompt clamped" }, video.prompt), h("p", { className: "quiet" }, facts(video)),
  h("div", { className: "actions" }, h("a", { className: "button", href: video.story ? `/story/${video.id}` : `/gallery/${video.id}` }, "Open"), video.story ? "" : button("Use these settings", () => fillFrom(video)),
    isDraft(video) ? button("Make it in full", () => promote(video), { title: "The same seed, in the model's own number of steps" }) : "",
    button("Extend this clip", () => extend(video)), button("Start from this frame", (event) => startFrom(event.currentTarget.closest("section").querySelector("video, img"), video)), h("a", { className: "button", href: `${content(video, "video")}&download=true`, download: "" }, "Download")));

export function player(video, index = 0) {
  if (!video.files.length) return h("p", { className: "quiet" }, "no file");
  if (/\.(gif|webp|png)$/.test(video.files[index]?.name ?? "")) return h("img", { src: content(video, "video", index), alt: video.prompt });
  return h("video", { src: content(video, "playable", index), controls: true, loop: true, muted: true, playsInline: true, autoplay: true, preload: "metadata" });
}

let strip = "";
async function drawStrip(queue) {
  const place = document.querySelector("#create .filmstrip");
  const key = `${queue.counts.done} ${queue.counts.cancelled}`;
  if (strip === key) return mark(place);
  strip = key;
  const { data } = await call("GET", "/v1/videos?show=done&limit=12");
  place.hidden = data.length < 2;
  place.replaceChildren(...data.map((video) => h("a", { href: `/gallery/${video.id}`, title: video.prompt, dataset: { job: video.id }, onclick: (event) => {
    event.preventDefault();
    chosen = chosen?.id === video.id ? null : video;
    dispatchEvent(new Event("radial-look"));
  } }, h("img", { src: content(video, "thumbnail"), alt: video.prompt.slice(0, 100), loading: "lazy" }))));
  mark(place);
}

function mark(place) {
  for (const link of place.children) {
    if (link.dataset.job === chosen?.id) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

