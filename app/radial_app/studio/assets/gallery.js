// The gallery: finished videos page by page, many of them at once, and one in detail at an address of its own.
import { ask, button, bytes, call, clock, content, dialog, h, icon, many, say, when } from "./dom.js";
import { chooseOther, compare } from "./compare.js";
import { finisher } from "./finishing.js";
import { fill } from "./form.js";
import { player } from "./live.js";
import { log } from "./queue.js";
import { go, here, openPlace, title } from "./router.js";
import { extend, frameOf, isDraft, promote, startFrom, variations } from "./start_from.js";
import { facts } from "./waiting.js";

const PAGE = 24;
const state = { show: "done", search: "", order: "desc", count: "", videos: [], more: false, picked: new Set() };
let open = null; // the dialog of one video

export function showGallery(queue) {
  const place = document.getElementById("gallery");
  if (place.hidden) return;
  if (!place.querySelector(".tiles")) build(place);
  const count = `${queue.counts.done} ${queue.counts.cancelled} ${queue.counts.failed}`;
  if (count === state.count) return;
  state.count = count;
  load(place, true).catch((error) => say(error.message, true));
}

function build(place) {
  const again = () => load(place, true).catch((error) => say(error.message, true));
  const search = h("input", { type: "search", placeholder: "Search prompts", ariaLabel: "Search prompts", maxLength: 200, oninput: () => {
    state.search = search.value;
    clearTimeout(build.timer);
    build.timer = setTimeout(again, Date.now() - (build.typed ?? 0) < 300 ? 80 : 0); // at once, unless somebody is typing on
    build.typed = Date.now();
  } });
  const list = (label, options, name) => { const one = h("select", { ariaLabel: label, onchange: () => { state[name] = one.value; again(); } }, ...options.map(([value, words]) => h("option", { value }, words))); return one; };
  place.replaceChildren(h("div", { className: "head" }, h("h1", {}, "Gallery"), h("div", { className: "beside" }, search,
    button("Trash", openTrash), list("Which videos", [["done", "All videos"], ["favourites", "Favourites"], ["finished", "Failed ones, too"]], "show"), list("Order", [["desc", "Latest first"], ["asc", "Oldest first"]], "order"))),
  h("div", { className: "actions picked", role: "region", ariaLabel: "Chosen videos", hidden: true }), h("div", { className: "tiles" }), h("div", { className: "foot" }));
}

async function load(place, anew) {
  const size = anew ? Math.max(PAGE, Math.min(96, state.videos.length)) : PAGE;
  const after = anew || !state.videos.length ? "" : `&after=${state.videos.at(-1).id}`;
  const page = await call("GET", `/v1/videos?show=${state.show}&order=${state.order}&search=${encodeURIComponent(state.search)}&limit=${size}${after}`);
  state.videos = anew ? page.data : [...state.videos, ...page.data];
  state.more = page.has_more;
  draw(place);
}

// What was changed here shows at once, whatever the stream has told so far.
function refresh() {
  const place = document.getElementById("gallery");
  if (place.querySelector(".tiles")) load(place, true).catch((error) => say(error.message, true));
}

const mark = (video) => `${video.id} ${video.favourite} ${video.state}`;

function draw(place) {
  const tiles = place.querySelector(".tiles");
  const old = new Map([...tiles.children].map((tile) => [tile.dataset.mark, tile]));
  tiles.replaceChildren(...state.videos.map((video) => old.get(mark(video)) ?? tile(video, true)));
  if (!state.videos.length)
    tiles.replaceChildren(state.search || state.show !== "done" ? h("div", { className: "empty" }, h("h2", {}, "Nothing matches")) : h("div", { className: "empty" }, h("h2", {}, "No videos yet"),
      h("p", {}, "What you make is kept here, with all of its settings."), h("a", { className: "button", href: "/" }, "Make a clip")));
  place.querySelector(".foot").replaceChildren(...(state.more ? [button("Show more", () => load(place, false))] : []));
  drawPicked(place);
}

export function tile(video, full = false) {
  const animated = /\.(mp4|webm)$/.test(video.files[0]?.name ?? "");
  const picture = h("span", { className: "picture" }, video.files.length ? h("img", { src: content(video, "thumbnail"), loading: "lazy", alt: "" }) : h("span", {}, video.state),
    video.favourite ? h("span", { className: "mark star", title: "favourite" }, "★") : "", video.files[0]?.partial ? h("span", { className: "mark stopped" }, "stopped early") : "",
    h("span", { className: "mark length" }, `${Number(video.seconds).toFixed(1)} s${video.files.length > 1 ? ` × ${video.files.length}` : ""}`), video.finish && !video.renders ? h("span", { className: "mark stopped" }, "finished") : "");
  const made = video.completed_at ? when(video.completed_at) : "";
  const link = h("a", { href: `/gallery/${video.id}`, title: video.prompt }, picture, h("span", { className: "words" }, h("span", { className: "prompt clamped" }, video.prompt), h("span", { className: "quiet" }, `${video.model}${made ? `, ${made}` : ""}`)));
  let moving = null;
  const stop = () => { moving?.remove(); moving = null; };
  if (animated) {
    link.addEventListener("pointerenter", (event) => {
      if (event.pointerType !== "mouse" || moving) return;
      moving = h("video", { src: content(video), muted: true, loop: true, autoplay: true, playsInline: true });
      picture.append(moving);
    });
    link.addEventListener("pointerleave", stop);
  }
  const pick = full ? h("input", { type: "checkbox", className: "pick", ariaLabel: `Choose: ${video.prompt.slice(0, 80)}`, checked: state.picked.has(video.id), onchange: () => {
    state.picked[pick.checked ? "add" : "delete"](video.id);
    one.classList.toggle("chosen", pick.checked);
    drawPicked(document.getElementById("gallery"));
  } }) : "";
  const one = h("article", { className: `tile${state.picked.has(video.id) && full ? " chosen" : ""}`, dataset: { job: video.id, mark: mark(video) } }, link, pick);
  return one;
}

function drawPicked(place) {
  const bar = place.querySelector(".picked");
  const ids = [...state.picked].filter((id) => state.videos.some((video) => video.id === id));
  bar.hidden = !ids.length;
  const all = async (act) => { for (const id of ids) await act(id); state.picked.clear(); refresh(); };
  const two = ids.map((id) => state.videos.find((video) => video.id === id));
  bar.replaceChildren(h("strong", {}, `${many(ids.length, "video")} chosen`), h("a", { className: "button", href: `/v1/archive?ids=${ids.join(",")}`, download: "" }, "Download as zip"),
    button("Favourite", () => all((id) => call("PATCH", `/v1/videos/${id}`, { favourite: true }))), ids.length > 1 ? h("a", { className: "button", href: `/v1/join?ids=${ids.join(",")}`, download: "", title: "One after the other, in the order in which they were chosen" }, "Join") : "", ids.length === 2 ? button("Compare", () => compare(...two)) : "",
    button("Delete", async () => { if (await ask(`Move ${many(ids.length, "video")} to the trash?`, "Move to the trash")) await all((id) => call("DELETE", `/v1/videos/${id}`)); }, { className: "danger" }),
    button("Choose none", () => { state.picked.clear(); for (const box of place.querySelectorAll(".pick")) { box.checked = false; box.closest(".tile").classList.remove("chosen"); } drawPicked(place); }, { className: "link" }));
}

// The place /gallery/ID is its video over the gallery; going back closes it.
export async function showVideo(name, id) {
  if (name !== "gallery" || !id) {
    const box = open;
    open = null;
    return box?.close();
  }
  if (open?.dataset.job === id) return;
  open?.close();
  let video;
  try {
    video = await call("GET", `/v1/videos/${encodeURIComponent(id)}`);
  } catch (error) {
    say(error.message, true);
    return go("/gallery", true);
  }
  if (here().id !== id) return;
  title(video.prompt.slice(0, 60));
  open = drawVideo(video);
  open.dataset.job = id;
  open.addEventListener("close", ({ target }) => { if (open === target) { open = null; go("/gallery"); } });
}

function drawVideo(video) {
  const { id, request } = video;
  let index = 0;
  const screen = h("div", { className: "screen" }, player(video));
  const shown = () => screen.firstElementChild;
  const several = video.files.length > 1 ? h("div", { className: "actions" }, ...video.files.map((file) => button(`seed ${file.seed}${file.finished ? ", finished" : ""}`, () => { index = file.index; screen.replaceChildren(player(video, index)); }))) : "";
  const leave = (act) => async () => { await act(); box.close(); };
  const star = button([icon("star"), h("span", {}, video.favourite ? "Favourite, take back" : "Favourite")], async () => {
    video.favourite = !video.favourite;
    await call("PATCH", `/v1/videos/${id}`, { favourite: video.favourite });
    star.lastElementChild.textContent = video.favourite ? "Favourite, take back" : "Favourite";
    refresh();
  });
  const at = state.videos.findIndex((one) => one.id === id);
  const step = (by) => state.videos[at + by] && at >= 0 ? () => go(`/gallery/${state.videos[at + by].id}`, true) : null;
  const [before, after] = [step(-1), step(1)];
  const frame = (by) => { const now = shown(); now.pause?.(); now.currentTime = Math.max(0, Math.min(now.duration || 0, now.currentTime + by / video.fps)); };
  const moving = shown().tagName === "VIDEO";
  const rows = Object.entries(request).filter(([name, value]) => name !== "prompt" && value !== null && value !== "" && !(Array.isArray(value) && !value.length));
  const box = dialog("Video", screen, several,
    h("div", { className: "actions" },
      button([icon("before"), "Previous"], () => before?.(), { disabled: !before }), button(["Next", icon("after")], () => after?.(), { disabled: !after }),
      moving ? h("span", { className: "choices", role: "group", ariaLabel: "Frame by frame" }, button("◂ frame", () => frame(-1), { title: "One frame back (,)", ariaLabel: "One frame back" }), button("frame ▸", () => frame(1), { title: "One frame on (.)", ariaLabel: "One frame on" })) : ""),
    h("p", { className: "prompt" }, video.prompt), h("p", { className: "quiet" }, facts(video)), video.note ? h("p", { className: "quiet" }, video.note) : "",
    h("div", { className: "actions" }, video.story ? button("Open as a story", leave(() => go(`/story/${id}`)), { className: "primary" }) : button("Use these settings", leave(() => { fill(request); openPlace("create"); }), { className: "primary" }),
      isDraft(video) ? button("Make it in full", leave(() => promote(video, index)), { title: "The same seed, in all of its steps" }) : "", star,
      video.files.length ? h("a", { className: "button", href: `${content(video, "video", index)}&download=true`, download: "", onclick: (event) => { event.currentTarget.href = `${content(video, "video", index)}&download=true`; } }, "Download") : "",
      button("Delete", async () => {
        if (!(await ask("Move this video to the trash?", "Move to the trash"))) return;
        await call("DELETE", `/v1/videos/${id}`);
        refresh();
        box.close();
        say("Moved to the trash.", false, ["Undo", () => restore(id)]);
      }, { className: "danger" })),
    h("details", { open: true }, h("summary", {}, "Go on from it"), h("div", { className: "actions" },
      button("Extend this clip", () => extend(video, index)), button("Start from this frame", () => startFrom(shown(), video)),
      button("Save this frame", async () => { const file = await frameOf(shown()); const link = h("a", { href: URL.createObjectURL(file), download: `${id}.png` }); link.click(); URL.revokeObjectURL(link.href); }))),
    moving ? h("details", {}, h("summary", {}, "Cut a part out"), cutter(video, shown, () => index)) : "",
    moving ? h("details", {}, h("summary", {}, "Finish it"), finisher(video, () => index, () => box.close())) : "",
    h("details", {}, h("summary", {}, "Compare"), h("div", { className: "actions" }, button("With another", () => chooseOther(video, index, tile)),
      request.attention !== "dense" && !video.story && video.renders ? button("With dense attention", () => beside(video, { attention: "dense" }), { title: "The same seed with dense attention, then both side by side" }) : "",
      request.loras.length && !video.story && video.renders ? button("Adapter weights", () => weights(video)) : "", video.story || !video.renders ? "" : button("Small variations", () => variations(video), { title: "Four other seeds, quick and small; the best is made in full" }))),
    h("details", {}, h("summary", {}, "Settings and log"), h("div", { className: "actions" }, video.story ? "" : button("Copy as command", async () => copy((await call("GET", `/v1/videos/${id}/command`)).command)), button("Log", () => log(video))),
      h("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "A wide table" }, h("table", {}, ...rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name.replaceAll("_", " ")), h("td", {}, typeof value === "object" ? JSON.stringify(value) : String(value)))))),
      h("p", { className: "quiet" }, video.files.map((file) => `rendered in ${clock(file.render_seconds)}`).join(", "))));
  box.addEventListener("keydown", (event) => {
    if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey) return;
    const act = { ArrowLeft: before, ArrowRight: after, ",": () => frame(-1), ".": () => frame(1), f: () => star.click() }[event.key];
    if (!act || (event.target.tagName === "VIDEO" && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    act();
  });
  return box;
}

async function restore(id) {
  await call("POST", `/v1/trash/${id}/restore`);
  refresh();
}

async function openTrash() {
  const deleted = await call("GET", "/v1/trash");
  const box = dialog("Trash", deleted.length ? h("ol", { className: "rows" }, ...deleted.map((video) => {
    const row = h("li", { dataset: { job: video.id } }, h("span", { className: "picture" }, bytes(video.bytes)), h("div", { className: "what" }, h("p", { className: "prompt clamped" }, video.prompt),
      h("p", { className: "quiet" }, `${video.model}, deleted ${when(video.deleted_at)}`)), button("Bring it back", async () => { await restore(video.id); row.remove(); }));
    return row;
  })) : h("p", { className: "quiet" }, "Nothing is in the trash."), deleted.length ? h("div", { className: "actions" }, button("Delete all for good", async () => {
    if (!(await ask(`Delete ${many(deleted.length, "video")} for good?`, "Delete for good"))) return;
    await call("DELETE", "/v1/trash");
    box.close();
  }, { className: "danger" })) : "");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    dialog("Command", h("pre", {}, text));
  }
}

// The same clip with other values: queued, waited for, compared, in whatever tab looks by then.
async function beside(video, changes) {
  const other = await call("POST", `/v1/videos/${video.id}/duplicate`, { ...changes, num_videos: 1, seed: video.files[0].seed });
  say("Queued; both are shown side by side when it is done.");
  awaited.set(other.id, video);
}

const awaited = new Map();

// Called when the queue has changed: what somebody waits for may be done.
export async function openAwaited(queue) {
  for (const [id, video] of awaited) {
    if (queue.waiting.some((one) => one.id === id)) continue;
    const now = await call("GET", `/v1/videos/${id}`).catch(() => null);
    if (now && !["done", "failed", "cancelled"].includes(now.state)) continue;
    if (!awaited.delete(id)) continue;
    if (now?.state === "done") compare(video, now);
    else say(now?.error?.message ?? "it was given up", true);
  }
}

// From one frame to another, of the file as it is.
function cutter(video, shown, index) {
  const marks = { start: 0, end: null };
  const told = h("span", { className: "quiet", role: "status" });
  const link = h("a", { className: "button", download: "" }, "Download the part");
  const show = () => {
    const wrong = marks.end !== null && marks.end <= marks.start;
    told.textContent = wrong ? "It ends before it begins" : `from ${marks.start.toFixed(2)} s to ${marks.end === null ? "the end" : `${marks.end.toFixed(2)} s`}`;
    if (wrong) link.removeAttribute("href");
    else link.href = `/v1/videos/${video.id}/part?index=${index()}&start=${marks.start}${marks.end === null ? "" : `&end=${marks.end}`}`;
  };
  const frame = () => Math.floor(shown().currentTime * video.fps + 1e-3) / video.fps;
  show();
  return h("div", { className: "actions" }, button("Begins at this frame", () => { marks.start = frame(); show(); }), button("Ends with this frame", () => { marks.end = frame() + 1 / video.fps; show(); }), told, link);
}

function weights(video) {
  const field = h("input", { type: "text", value: "0, 0.5, 1", id: "weights" });
  const problem = h("p", { className: "problem", role: "alert", hidden: true });
  const box = dialog("Adapter weights", h("div", { className: "field" }, h("label", { htmlFor: "weights" }, "Weights of the first adapter, from -10 to 10"), field),
    h("p", { className: "quiet" }, "One clip each, with the same seed; the gallery compares them."), problem,
    button("Queue them", async () => {
      const wanted = field.value.split(",").map((text) => (text.trim() ? Number(text) : NaN));
      const bad = wanted.some((weight) => !(Math.abs(weight) <= 10));
      problem.hidden = !bad;
      problem.textContent = "Numbers from -10 to 10 with commas between them, such as 0, 0.5, 1";
      if (bad) return;
      for (const weight of wanted) {
        const loras = video.request.loras.map((lora, place) => (place ? lora : { ...lora, weight }));
        await call("POST", `/v1/videos/${video.id}/duplicate`, { loras, num_videos: 1, seed: video.files[0]?.seed ?? video.request.seed });
      }
      box.close();
      say(`${many(wanted.length, "clip")} queued.`);
    }, { className: "primary" }));
}
