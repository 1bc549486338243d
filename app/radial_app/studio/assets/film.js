// The film of a story: it plays while it is made, a picture for each segment, and where it goes on.
import { ask, button, call, clock, h, many, say } from "./dom.js";
import { go, here } from "./router.js";
import { story as draft, keepStory, memoryChoice, memoryWords } from "./story_draft.js";

const STAGES = { load: "Loading the model", download: "Downloading the model", encode: "Reading the prompts", denoise: "Making", decode: "Decoding", write: "Writing the file", finish: "Finishing the frames" };
const ASKED = { pause: " - pauses after this step", finish: " - ends after this step", cancel: " - ends" };
const ENDED = ["done", "failed", "cancelled"];
let acts = {};
let now = null; // the story that is shown
let seen = "";
let asked = 0;
let wanted = {}; // by segment, how it is to be remembered from now on

export function buildFilm(place, given) {
  acts = given;
  place.append(h("section", { id: "film-now", className: "card", ariaLabel: "The film" }), h("section", { id: "films", className: "stack", ariaLabel: "Films made before" }));
}

export function openFilm(told) {
  draft.shown = told.id;
  keepStory();
  seen = "";
  if (here().id) go(`/story/${told.id}`); // or the address would have the former one shown again
  showFilm(null, true).catch((error) => say(error.message, true));
  const place = document.getElementById("film-now");
  if (place.getBoundingClientRect().top > innerHeight * 0.8) place.scrollIntoView({ block: "start" });
}

// Drawn anew when what the queue says of the story differs.
export async function showFilm(queue, anew = false) {
  const mine = queue?.waiting.find((video) => video.id === draft.shown);
  const key = JSON.stringify([draft.shown, mine && [mine.state, mine.stage, mine.step, mine.control, mine.note, mine.story?.pieces_done], queue && [queue.counts, queue.workers]]);
  if (!anew && key === seen) return;
  seen = key;
  const [mineNow, id] = [(asked += 1), draft.shown];
  const { data } = await call("GET", "/v1/stories?limit=12");
  let told = data.find((one) => one.id === id) ?? (id ? await call("GET", `/v1/stories/${encodeURIComponent(id)}`).catch(() => null) : null);
  if (mineNow !== asked) return; // another film, or another look at this one, was asked for meanwhile
  if (!told) {
    told = data[0] ?? null;
    draft.shown = told?.id ?? "";
  }
  draw(told, queue);
  drawOthers(data);
}

function draw(told, queue) {
  const place = document.getElementById("film-now");
  if (!told) {
    now = null;
    return place.replaceChildren(h("h2", {}, "Your film is shown here while it is made"), h("p", { className: "quiet" }, "It plays from its first part on. What is finished stays, however it is stopped."));
  }
  const gone = place.querySelector("video") && !told.playable_seconds && !told.files.length; // what played is no more
  if (now?.id !== told.id || !place.querySelector("video, .wait") || gone) {
    place.replaceChildren(...frame());
    wanted = {};
  }
  now = told;
  const wait = place.querySelector(".wait");
  if (wait) wait.textContent = ENDED.includes(told.state) ? "Nothing is kept of it" : "The first part comes soon";
  const running = told.state === "running";
  place.querySelector(".stage").textContent = stage(told, queue);
  place.querySelector(".eta").textContent = running && told.eta ? `${clock(told.eta)} left` : "";
  const bar = place.querySelector("progress");
  bar.hidden = ENDED.includes(told.state);
  bar.value = told.progress;
  place.querySelector(".plays").textContent = told.playable_seconds ? `${told.playable_seconds.toFixed(1)} of ${told.seconds.toFixed(1)} s play` : `${told.seconds.toFixed(1)} s, ${many(told.segments.length, "segment")}`;
  const note = place.querySelector(".note");
  note.textContent = told.note;
  note.hidden = !told.note;
  note.className = `note ${told.state === "failed" ? "problem" : "quiet"}`;
  play(place, told);
  drawActions(place.querySelector(".film-actions"), told);
  drawSegments(place.querySelector(".segments"), told);
}

const frame = () => [h("div", { className: "screen" }, h("p", { className: "quiet wait" })),
  h("div", { className: "bar" }, h("progress", { max: 100, ariaLabel: "Progress of the film" })),
  h("p", { className: "line" }, h("span", { className: "stage" }), h("span", { className: "eta" }), h("span", { className: "plays quiet" })),
  h("p", { className: "note", hidden: true }), h("div", { className: "actions film-actions" }), h("ol", { className: "segments", ariaLabel: "Segments of the film" }), h("div", { className: "actions of-memory", ariaLive: "polite" })];

function stage(told, queue) {
  if (told.state === "queued") return queue && !queue.workers ? "Waits, and nobody renders: radial work starts a worker" : "Waits";
  if (told.state === "paused") return "On hold";
  if (told.state === "failed") return "Failed";
  if (told.state === "cancelled") return told.playable_seconds ? "Stopped; what is finished plays" : "Given up";
  if (told.state === "done") return "Done";
  const at = told.stage === "denoise" ? ` segment ${told.segment} of ${told.segments.length}${told.step ? `, step ${told.step} of ${told.steps}` : ""}` : "";
  return `${STAGES[told.stage] ?? told.stage}${at}${ASKED[told.control] ?? ""}`;
}

// A growing film is fetched up to a size, at which it stays the same; when it has played so far, what has come since
// goes on where it ended.
function play(place, told) {
  const ended = told.files.length && ENDED.includes(told.state);
  if (!ended && !told.film_bytes) return;
  const source = ended ? `/v1/stories/${told.id}/content?of=${told.completed_at}` : `/v1/stories/${told.id}/content?upto=${told.film_bytes}`;
  let video = place.querySelector("video");
  if (!video) {
    video = h("video", { controls: true, muted: true, playsInline: true, autoplay: true, preload: "auto", ariaLabel: "The film so far" });
    place.querySelector(".screen").replaceChildren(video);
    video.addEventListener("ended", () => take(video));
  }
  video.dataset.next = source;
  if (!video.src || video.ended || video.error || (ended && video.paused)) take(video);
}

function take(video) {
  const { next, shown } = video.dataset;
  if (!next || next === shown) return;
  const [at, goesOn] = [video.currentTime, !shown || video.ended];
  video.dataset.shown = next;
  video.addEventListener("loadedmetadata", () => { video.currentTime = at; if (goesOn) video.play().catch(() => {}); }, { once: true });
  video.src = next;
}

function drawActions(place, told) {
  const key = JSON.stringify([told.id, told.state, told.control, told.goes_on, told.files.length, told.playable_seconds > 0]);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const act = (action) => async () => { await call("POST", `/v1/stories/${told.id}/${action}`); seen = ""; await showFilm(null, true); };
  const once = { disabled: Boolean(told.control) };
  const discard = button("Discard", async () => (await ask("Give this film up, with what is made of it?", "Discard it")) && act("cancel?keep=false")(), { className: "danger", ...once });
  const ended = ENDED.includes(told.state);
  const able = {
    running: [button("Pause", act("pause"), once), button("Stop and keep", act("cancel?keep=true"), { title: "Ends after this step, with what is finished", ...once }), discard],
    queued: [button("Hold", act("pause")), discard], paused: [button("Go on", act("resume"), { className: "primary" }), button("Stop and keep", act("cancel?keep=true")), discard],
    failed: [button("Try again", act("retry"), { title: "From the last finished part on" })],
    cancelled: [told.goes_on && told.playable_seconds ? button("Go on to its end", act("retry"), { className: "primary", title: "From the last finished part on" }) : ""], done: [],
  }[told.state];
  place.replaceChildren(...able, ended && told.goes_on ? button("Go on with more lines", () => acts.goOn(told, told.segments.filter((one) => one.done).length, false), told.state === "done" ? { className: "primary" } : {}) : "",
    told.playable_seconds ? h("a", { className: "button", href: `/v1/stories/${told.id}/content?download=true`, download: "" }, "Download") : "",
    ended ? button("Delete", async () => {
      if (!(await ask("Move this film to the trash?", "Move to the trash"))) return;
      await call("DELETE", `/v1/stories/${told.id}`);
      if (draft.from?.id === told.id) draft.from = null;
      draft.shown = "";
      await showFilm(null, true);
    }, { className: "danger" }) : "");
}

function drawSegments(place, told) {
  const key = JSON.stringify([told.id, told.state, told.segment, told.goes_on, told.segments]);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const ended = ENDED.includes(told.state);
  const mayRemember = ended && told.goes_on && told.way === "chunks" && told.remembers.kind !== "none";
  const seek = (segment) => () => { const video = document.querySelector("#film-now video"); if (video) { take(video); video.currentTime = segment.begin + 1e-3; video.play().catch(() => {}); } };
  place.replaceChildren(...told.segments.map((segment, index) => {
    const at = told.state === "running" && index === told.segment - 1;
    const picture = segment.done ? h("img", { src: `/v1/stories/${told.id}/segments/${index + 1}/thumbnail?seed=${told.request.seed}`, alt: "", loading: "lazy" }) : h("span", { className: "quiet" }, at ? "now" : "");
    return h("li", { className: segment.done ? "done" : at ? "at" : "" },
      segment.done ? button(picture, seek(segment), { className: "picture", ariaLabel: `Play from segment ${index + 1}` }) : h("span", { className: "picture" }, picture),
      h("div", { className: "what" }, h("p", { className: "prompt clamped", title: segment.look ? `${segment.name}: ${segment.look}` : "" }, segment.prompt), h("p", { className: "quiet" }, `${segment.begin.toFixed(1)} to ${segment.end.toFixed(1)} s${segment.cut && index ? ", after a cut" : ""}${segment.remember && !(mayRemember && segment.done) ? `, ${memoryWords(segment.remember)}` : ""}`),
        mayRemember && segment.done ? memoryChoice("segment", index + 1, told.segments.length, wanted[index + 1] === undefined ? segment.remember : wanted[index + 1], (remember) => {
          if (remember === segment.remember) delete wanted[index + 1];
          else wanted[index + 1] = remember;
          drawMemory(told);
        }) : ""),
      ended && told.goes_on && segment.done ? button("From here on", () => acts.goOn(told, index, true), { title: "Make this segment and what follows anew: other words, lines between, or just another draw", ariaLabel: `Make it anew from segment ${index + 1} on` }) : "");
  }));
  drawMemory(told);
}

// Once the memory of some segments is to be another one, what that makes of the film.
function drawMemory(told) {
  const place = document.querySelector("#film-now .of-memory");
  const remake = async () => {
    const made = await call("POST", `/v1/stories/${told.id}/continue`, { remember: wanted, keep: told.segments.filter((one) => one.done).length });
    openFilm(made);
    say(made.notes.at(-1));
  };
  place.replaceChildren(...(Object.keys(wanted).length ? [
    button("Make it anew with this memory", remake, { className: "primary", title: "From the first segment on that reads what was changed; what comes before stays, and so does this film" }),
    button("As it was", () => { wanted = {}; document.querySelector("#film-now .segments").dataset.key = ""; drawSegments(document.querySelector("#film-now .segments"), told); }, { className: "link" })] : []));
}

function drawOthers(data) {
  const place = document.getElementById("films");
  const others = data.filter((one) => one.id !== draft.shown);
  const key = JSON.stringify(others.map((one) => [one.id, one.state, one.playable_seconds > 0]));
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...(others.length ? [h("h2", {}, "Other films"), h("ol", { className: "rows" }, ...others.map((one) => h("li", {},
    one.segments[0].done ? h("img", { className: "picture", src: `/v1/stories/${one.id}/segments/1/thumbnail?seed=${one.request.seed}`, alt: "", loading: "lazy" }) : h("span", { className: "picture" }, one.size),
    h("div", { className: "what" }, h("p", { className: "prompt clamped" }, one.segments[0].prompt), h("p", { className: "quiet" }, `${one.seconds.toFixed(1)} s, ${many(one.segments.length, "segment")}, ${one.model}, ${one.state}`)),
    h("div", { className: "actions" }, h("a", { className: "button", href: `/story/${one.id}` }, "Show")))))] : []));
}
