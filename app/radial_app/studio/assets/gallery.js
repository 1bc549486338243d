// The gallery: finished videos page by page, one in detail, and two against each other.
import { button, call, clock, content, dialog, h, say } from "./dom.js";
import { compare } from "./compare.js";
import { player } from "./live.js";
import { log } from "./queue.js";

const PAGE = 24;
const state = { show: "done", search: "", count: -1, videos: [], more: false, first: null };

export function showGallery(queue) {
  const place = document.getElementById("gallery");
  if (!place || !place.offsetParent) return;
  const count = (queue.counts.done ?? 0) + (queue.counts.cancelled ?? 0) * 1e6 + (queue.counts.failed ?? 0) * 1e9;
  if (!place.querySelector(".tiles")) build(place);
  if (count !== state.count) {
    state.count = count;
    load(place, true).catch((error) => say(error.message, true));
  }
}

function build(place) {
  const search = h("input", { type: "search", placeholder: "Search prompts", ariaLabel: "Search prompts", maxLength: 200,
    oninput: () => {
      state.search = search.value;
      clearTimeout(build.timer);
      // At once, unless somebody is typing on.
      build.timer = setTimeout(() => load(place, true), Date.now() - (build.typed ?? 0) < 300 ? 80 : 0);
      build.typed = Date.now();
    } });
  const show = h("select", { ariaLabel: "Which videos", onchange: () => { state.show = show.value; load(place, true); } },
    ...[["done", "Videos"], ["favourites", "Favourites"], ["finished", "All that ended"]].map(([value, text]) => h("option", { value }, text)));
  place.replaceChildren(h("div", { className: "head" }, h("h2", {}, "Gallery"), show, search),
    h("div", { className: "tiles" }), h("div", { className: "foot" }));
}

async function load(place, anew) {
  const wanted = `/v1/videos?show=${state.show}&search=${encodeURIComponent(state.search)}`;
  const size = anew ? Math.max(PAGE, Math.min(96, state.videos.length)) : PAGE;
  const page = await call("GET", `${wanted}&limit=${size}&offset=${anew ? 0 : state.videos.length}`);
  state.videos = anew ? page.data : [...state.videos, ...page.data];
  state.more = page.has_more;
  draw(place);
}

// What was changed here shows at once, whatever the stream has told so far.
function refresh() {
  const place = document.getElementById("gallery");
  if (place?.querySelector(".tiles")) load(place, true).catch((error) => say(error.message, true));
}

function draw(place) {
  const tiles = place.querySelector(".tiles");
  const old = new Map([...tiles.children].map((tile) => [tile.dataset.mark, tile]));
  tiles.replaceChildren(...state.videos.map((video) => old.get(mark(video)) ?? tile(video)));
  if (!state.videos.length)
    tiles.replaceChildren(h("div", { className: "radial-empty" }, h("h3", {}, "No videos yet"),
      h("p", {}, state.search || state.show !== "done" ? "None match." : "What you make is kept here, with its settings.")));
  place.querySelector(".foot").replaceChildren(...(state.more ? [button("Show more", () => load(place, false))] : []));
}

const mark = (video) => `${video.id} ${video.favourite} ${video.state}`;

function tile(video) {
  const picture = video.files.length
    ? h("img", { src: content(video, "thumbnail"), loading: "lazy", alt: "" })
    : h("p", { className: "radial-quiet" }, video.state);
  return h("button", { type: "button", className: "tile", dataset: { job: video.id, mark: mark(video) }, title: video.prompt,
    onclick: () => openVideo(video.id).catch((error) => say(error.message, true)) },
    h("span", { className: "picture" }, picture, video.favourite ? h("span", { className: "star", ariaLabel: "favourite" }, "★") : "",
      h("span", { className: "length" }, `${Number(video.seconds).toFixed(1)} s`)),
    h("span", { className: "prompt" }, video.prompt));
}

export async function openVideo(id, index = 0) {
  const video = await call("GET", `/v1/videos/${id}`);
  const request = video.request;
  const screen = h("div", { className: "screen" }, player(video, index));
  const several = video.files.length > 1 ? h("div", { className: "actions" }, ...video.files.map((file) =>
    button(`seed ${file.seed}`, () => { screen.replaceChildren(player(video, file.index)); index = file.index; }))) : "";
  const rows = Object.entries(request).filter(([name, value]) => name !== "prompt" && value !== null && value !== "" && !(Array.isArray(value) && !value.length));
  const star = button(video.favourite ? "★ Favourite" : "☆ Favourite", async () => {
    video.favourite = !video.favourite;
    await call("PATCH", `/v1/videos/${id}`, { favourite: video.favourite });
    star.textContent = video.favourite ? "★ Favourite" : "☆ Favourite";
    refresh();
  });
  const close = (act) => async () => { await act(); box.close(); };
  const box = dialog("Video", screen, several, h("p", { className: "prompt" }, video.prompt),
    video.note ? h("p", { className: "radial-quiet" }, video.note) : "",
    h("div", { className: "actions" },
      button("Use these settings", close(() => window.radial.use(request)), { className: "primary" }),
      button("Extend this clip", close(() => window.radial.extend(video, index))),
      button("Compare with ...", () => chooseOther(video, index)),
      request.attention === "radial" ? button("Against dense", () => beside(video, { attention: "dense" }), { title: "The same seed with dense attention, then both side by side" }) : "",
      request.loras.length ? button("Adapter weights", () => weights(video)) : "",
      star,
      h("a", { href: `${content(video, "video", index)}&download=true`, download: "" }, "Download"),
      button("Copy as command", async () => {
        const { command } = await call("GET", `/v1/videos/${id}/command`);
        await copy(command);
      }),
      button("Log", () => log(video)),
      button("Delete", close(async () => { await call("DELETE", `/v1/videos/${id}`); refresh(); say("Moved to the trash, in the folder .trash beside it."); }), { className: "danger" })),
    h("details", {}, h("summary", {}, "Settings"), h("table", { className: "facts" }, ...rows.map(([name, value]) =>
      h("tr", {}, h("th", {}, name.replaceAll("_", " ")), h("td", {}, typeof value === "object" ? JSON.stringify(value) : String(value))))),
      h("p", { className: "radial-quiet" }, video.files.map((file) => `rendered in ${clock(file.render_seconds)}`).join(", "))));
  return box;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    dialog("Command", h("pre", {}, text));
  }
}

async function chooseOther(video, index) {
  const { data } = await call("GET", "/v1/videos?show=done&limit=60");
  const others = data.filter((other) => other.id !== video.id && other.files.length);
  const box = dialog("Compare with", others.length ? h("div", { className: "tiles" }, ...others.map((other) => {
    const one = tile(other);
    const copyOf = one.cloneNode(true);
    copyOf.addEventListener("click", () => { box.close(); compare(video, other, index); });
    return copyOf;
  })) : h("p", { className: "radial-quiet" }, "There is no other video yet."));
}

// The same clip with other values: queued, waited for, compared.
async function beside(video, changes) {
  const other = await call("POST", `/v1/videos/${video.id}/duplicate`, { ...changes, num_videos: 1, seed: video.files[0].seed });
  say("Queued; both are shown side by side when it is done.");
  const stream = new EventSource(`/v1/videos/${other.id}/events`);
  stream.addEventListener("video", (event) => {
    const now = JSON.parse(event.data);
    if (now.state === "done") { stream.close(); compare(video, now); }
    else if (["failed", "cancelled"].includes(now.state)) { stream.close(); say(now.error?.message ?? now.state, true); }
  });
}

function weights(video) {
  const field = h("input", { type: "text", value: "0, 0.5, 1", ariaLabel: "Weights" });
  const box = dialog("Adapter weights", h("label", {}, "Weights of the first adapter", field),
    h("p", { className: "radial-quiet" }, "One clip each, with the same seed; the gallery compares them."),
    button("Queue them", async () => {
      const wanted = field.value.split(",").map((text) => Number(text.trim()));
      if (!wanted.length || wanted.some((weight) => !Number.isFinite(weight))) throw new Error("give numbers, such as 0, 0.5, 1");
      for (const weight of wanted) {
        const loras = video.request.loras.map((lora, place) => (place ? lora : { ...lora, weight }));
        await call("POST", `/v1/videos/${video.id}/duplicate`, { loras, num_videos: 1, seed: video.files[0]?.seed ?? video.request.seed });
      }
      box.close();
      say(`${wanted.length} clips queued.`);
    }, { className: "primary" }));
}
