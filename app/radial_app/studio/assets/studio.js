// The studio: one stream of the queue, from which every place of the page is drawn.
import { call, h, say } from "./dom.js";
import { planned } from "./estimate.js";
import { buildForm, generate } from "./form.js";
import { openAwaited, showGallery, showVideo } from "./gallery.js";
import { loadAdapters, takeDrops } from "./inputs.js";
import { buildLive, showLive, showQueued } from "./live.js";
import { showModels } from "./models.js";
import { showQueue } from "./queue.js";
import { here, onPlace, startRouter } from "./router.js";
import { listenToKeys, showKeys, showSettings, tellDone } from "./settings.js";
import { showStory } from "./story.js";
import { startStream } from "./stream.js";
import { showTune } from "./tune.js";

let queue = null;

function show() {
  const { name, id } = here();
  if (name === "models") showModels().catch((error) => say(error.message, true));
  if (name === "settings") showSettings().catch((error) => say(error.message, true));
  if (name === "story") showStory(queue, id).catch((error) => say(error.message, true));
  showTune();
  if (!queue) return;
  if (name === "create") showLive(queue).catch((error) => say(error.message, true));
  showQueue(queue);
  showGallery(queue);
}

function showStatus(lost) {
  const running = queue?.counts.running ?? 0;
  const waiting = queue?.counts.queued ?? 0;
  const status = document.getElementById("status");
  status.className = lost ? "off" : running ? "busy" : queue?.workers === 0 ? "off" : "";
  status.querySelector(".words").textContent = lost ? "no connection" : running ? "rendering" : queue?.workers ? "ready" : queue ? "no worker" : "";
  const count = document.querySelector('#pages [data-place="queue"] .count');
  count.hidden = !(running + waiting);
  count.textContent = running + waiting;
  const banner = document.getElementById("banner");
  if (banner.hidden === lost) {
    banner.textContent = lost ? "The server does not answer. What you wrote is kept, and the page goes on by itself when it is back." : "";
    banner.hidden = !lost;
    if (!lost) dispatchEvent(new Event("radial-back"));
  }
}

function showPlan() {
  const place = document.getElementById("plan");
  const found = planned();
  if (!place?.closest("details").open || !found.request) return;
  const { model, height, width, num_frames, decay, attention, density, policy, target_share, num_inference_steps } = found.request;
  const query = new URLSearchParams({ model, height, width, num_frames, ...(attention === "adaptive" ? { attention, density } : { decay }) });
  const work = policy && `/v1/policies/${encodeURIComponent(policy)}/work.png?${new URLSearchParams({ steps: num_inference_steps, ...(target_share ? { target_share } : {}) })}`;
  if (place.dataset.key === `${attention} ${query} ${work}`) return;
  place.dataset.key = `${attention} ${query} ${work}`;
  const share = found.computed_share === null ? "" : `${Math.round(100 * found.computed_share)} % of all attention is computed, dense layers and steps included`;
  place.replaceChildren(attention === "dense" ? h("p", { className: "quiet" }, "Dense attention: every token sees every other.")
    : found.tokens > 300000 ? h("p", { className: "quiet" }, `${found.tokens.toLocaleString()} tokens are too many to draw here.`)
    : h("figure", {}, h("img", { src: `/v1/plan.png?${query}`, alt: "Which blocks of attention are computed" }), work && h("img", { src: work, alt: "How much of its attention each layer computes at each step" }), h("figcaption", { className: "quiet" }, share)));
}

function begin() {
  const create = document.getElementById("create");
  create.append(h("h1", { className: "visually-hidden" }, "Create"), h("div", { id: "form-place" }), h("div", { id: "live", className: "stack" }));
  buildLive(document.getElementById("live"));
  onPlace((name, id) => { show(); showVideo(name, id); });
  startRouter();
  buildForm(document.getElementById("form-place")).then(() => { loadAdapters().catch(() => {}); show(); if (here().name === "create") document.getElementById("prompt").focus({ preventScroll: true }); }).catch((error) => say(error.message, true));
  startStream(({ queue: now, lost = false }) => {
    if (now) queue = now;
    showStatus(lost);
    if (lost || !queue) return;
    tellDone(queue);
    openAwaited(queue);
    show();
  });
  addEventListener("radial-plan", showPlan);
  addEventListener("radial-plan-wanted", showPlan);
  addEventListener("radial-look", show);
  addEventListener("radial-queued", async () => { queue = await call("GET", "/v1/queue"); showStatus(false); showQueued(queue); });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || here().name !== "create" || document.querySelector("dialog")) return;
    event.preventDefault();
    generate();
  });
  document.getElementById("show-keys").addEventListener("click", showKeys);
  listenToKeys();
  takeDrops();
}

begin();
