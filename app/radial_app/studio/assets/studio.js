// The studio's own code: keeps every page's picture of the queue up to date, whichever tab or device looks at it.
import { h, hidden, lengthOf, openPage, say } from "./dom.js";
import { fillLoras, fillReferences, loadAdapters, takeDrops } from "./inputs.js";
import { openVideo, showGallery } from "./gallery.js";
import { showLive } from "./live.js";
import { showPages } from "./pages.js";
import { showQueue } from "./queue.js";
import { ask, planned } from "./estimate_line.js";
import { showTune } from "./tune.js";

let queue = null;
let stream = null;

function show() {
  showPages();
  showTune();
  window.radial.showPlan();
  if (!queue) return;
  showLive(queue).catch((error) => say(error.message, true));
  showQueue(queue);
  showGallery(queue);
  const running = queue.counts.running ?? 0;
  const waiting = queue.counts.queued ?? 0;
  const status = document.getElementById("status");
  if (status) status.textContent = running ? `rendering${waiting ? `, ${waiting} waiting` : ""}` : waiting ? `${waiting} waiting` : queue.workers ? "ready" : "no worker";
  document.title = running ? `Radial - ${queue.waiting[0]?.progress ?? 0} %` : "Radial";
}

function connect() {
  stream?.close();
  stream = new EventSource("/v1/events");
  stream.addEventListener("queue", (event) => {
    queue = JSON.parse(event.data);
    document.body.classList.remove("radial-offline");
    show();
  });
  stream.onerror = () => {
    document.body.classList.add("radial-offline");
    const status = document.getElementById("status");
    if (status) status.textContent = "the server does not answer";
    // The browser tries again by itself, unless the server refused.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}

window.radial = {
  look: show,
  // After Generate: on a phone the live side lies below the form.
  watch: () => {
    show();
    const live = document.getElementById("live");
    if (live && live.getBoundingClientRect().top > innerHeight * 0.8) live.scrollIntoView({ behavior: "smooth", block: "start" });
  },
  openVideo,
  fill: (name) => (name === "references" ? fillReferences() : fillLoras()),
  use: (request) => {
    hidden("inbox").set(JSON.stringify({ request, at: Date.now() }));
    openPage("create");
  },
  extend: (video, index = 0) => {
    const request = { ...video.request, image: null, last_image: null, extend: `video:${video.id}/${index}`, seed: -1, num_videos: 1 };
    window.radial.use(request);
    say("The clip goes on from its last frame; say what happens next.");
  },
  framesAt: (times, frames) => {
    const known = planned();
    return times && known.stride ? lengthOf(known, known.stride, parseInt(times)) : frames;
  },
  theme: (name) => {
    localStorage.setItem("radial-theme", name);
    const url = new URL(location.href);
    url.searchParams.set("__theme", name);
    location.assign(url);
  },
  showPlan: () => {
    const place = document.getElementById("plan");
    if (!place) return; // its box is closed
    const found = planned();
    if (!found.request) return;
    const { model, height, width, num_frames, decay, attention } = found.request;
    const share = found.computed_share === null ? "" : `${Math.round(100 * found.computed_share)} % of all attention is computed, dense layers and steps included`;
    const query = new URLSearchParams({ model, height, width, num_frames, decay });
    const key = `${attention} ${query}`;
    if (place.dataset.key === key) return;
    place.dataset.key = key;
    place.replaceChildren(attention === "dense" ? h("p", { className: "radial-quiet" }, "Dense attention: every token sees every other.")
      : found.tokens > 300000 ? h("p", { className: "radial-quiet" }, `${found.tokens.toLocaleString()} tokens are too many to draw here.`)
      : h("figure", {}, h("img", { src: `/v1/plan.png?${query}`, loading: "lazy", alt: "Which blocks of attention are computed" }), h("figcaption", { className: "radial-quiet" }, share)));
  },
};

// Gradio may have drawn the form before this code came.
function watchForm() {
  const check = (values) => ask(values, window.radial.showPlan);
  addEventListener("radial-form", (event) => check(event.detail));
  if (window.radialForm) check(window.radialForm);
}

function keys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const generate = document.getElementById("generate");
      if (!generate?.offsetParent) return;
      event.preventDefault();
      document.activeElement?.dispatchEvent(new Event("input", { bubbles: true }));
      setTimeout(() => generate.click(), 60);
    }
  });
}

// Gradio draws its page when it is ready; panes that are not there yet are filled once they are.
function begin() {
  const theme = localStorage.getItem("radial-theme");
  if (theme) document.body.classList.toggle("dark", theme === "dark");
  connect();
  watchForm();
  keys();
  takeDrops();
  loadAdapters().catch(() => {});
  new MutationObserver(() => {
    fillReferences();
    fillLoras();
  }).observe(document.body, { childList: true, subtree: true });
  document.addEventListener("click", (event) => event.target.closest('button[role="tab"]') && setTimeout(show, 50));
  setInterval(show, 1000);
  // A browser keeps few connections to a server: pages that nobody sees give theirs back.
  document.addEventListener("visibilitychange", () => (document.hidden ? stream.close() : connect()));
}

begin();
