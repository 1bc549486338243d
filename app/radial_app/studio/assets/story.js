// The Story tab: prompts one after the other on a timeline, and how the film of them is made.
import { button, call, h, icon, many, say } from "./dom.js";
import { check, choice, number, text } from "./fields.js";
import { modelsThat, words } from "./form.js";
import { buildFilm, openFilm, showFilm } from "./film.js";
import { upload, zone } from "./inputs.js";
import { openPlace } from "./router.js";
import { freshStory, keepStory, linesOf, memoryChoice, story, written } from "./story_draft.js";

const NEEDS_NAME = "A figure with a name comes back where its name stands again.";
const REMEMBERS = [["", "as the adapter was tuned"], ["last_frame", "its last frame"], ["mean_pool", "the mean of its frames"], ["radial", "all, ever less with age"], ["none", "nothing"]];
let built = false;
let adapters = [];
let plan = null;
let asking = false;
let again = false;
let refused = ""; // what kept the film from being made, until something changes
const fields = {};

const rows = () => document.querySelector("#story .lines");
const specNow = () => modelsThat((one) => one.id === story.fields.model)[0];
// Whether lines may say how they are remembered.
const remembers = () => (story.from ? story.from.remembers : specNow()?.stories.includes("chunks") && inChunks() && story.fields.remember !== "none");
const inChunks = () => Boolean(story.fields.causal || adapters.find((one) => one.id === story.fields.loras?.[0]?.path)?.remembers);

// Called when the place is shown, and whenever the queue has changed.
export async function showStory(queue, id) {
  const place = document.getElementById("story");
  if (place.hidden) return;
  if (!built && modelsThat(() => true).length) {
    built = true;
    adapters = await call("GET", "/v1/adapters").catch(() => []);
    build(place);
  }
  if (!built) return;
  if (id && id !== story.shown) { story.shown = id; keepStory(); }
  await showFilm(queue);
}

function build(place) {
  const able = modelsThat((one) => one.stories.length);
  if (!able.some((one) => one.id === story.fields.model)) story.fields.model = able[0]?.id;
  const put = (name, value) => { if (value === undefined || value === null || value === "") delete story.fields[name]; else story.fields[name] = value; changed(); };
  const plain = (make, name, label, more) => (fields[name] = make(`story-${name}`, label, { ...more, change: () => { fields[name].blame(fields[name].fault()); put(name, fields[name].get()); } })).element;
  const pick = (name, label, options) => (fields[name] = choice(`story-${name}`, label, options, { change: () => put(name, fields[name].get()) })).element;
  fields.model = choice("story-model", "Model", [], { change: () => { story.fields.model = fields.model.get(); drawSettings(); changed(); } });
  fields.model.fill([["with a memory, by an adapter", (one) => one.stories.includes("chunks")], ["in windows, without a memory", (one) => !one.stories.includes("chunks") && !one.stories.includes("image")], ["in windows, from an image on", (one) => !one.stories.includes("chunks") && one.stories.includes("image")]]
    .map(([group, test]) => ({ group, options: able.filter(test).map((one) => [one.id, one.on_disk || one.own ? one.id : `${one.id}, to download`]) })).filter((one) => one.options.length));
  fields.adapter = choice("story-adapter", "Adapter that remembers", [["", "none: window by window"], ...adapters.filter((one) => one.remembers).map((one) => [one.id, one.id])], { change: () => { put("loras", fields.adapter.get() ? [{ path: fields.adapter.get(), weight: 1 }] : undefined); drawSettings(); } });
  const settings = h("details", { id: "story-settings", open: true }, h("summary", {}, "How it is made"), h("div", { className: "stack" },
    h("div", { className: "fields wide" }, fields.model.element, fields.adapter.element,
      pick("remember", "An earlier segment leaves", REMEMBERS)),
    h("div", { className: "fields" }, plain(number, "seconds", "Seconds a line", { minimum: 0.1, maximum: 600, placeholder: "a native clip" }), plain(text, "size", "Size", { maxLength: 11, placeholder: "its own" }),
      plain(number, "num_inference_steps", "Steps", { type: "integer", minimum: 1, maximum: 1000, placeholder: "its own" }), plain(number, "seed", "Seed", { type: "integer", minimum: -1, maximum: 2 ** 53 - 1, placeholder: "drawn anew" })),
    h("div", { className: "zones", id: "story-image" }),
    (fields.causal = check("story-causal", "The model makes stories in chunks by itself", { hint: "A model that is not made for it gives noise", change: () => { put("causal", fields.causal.get()); drawSettings(); } })).element));
  place.replaceChildren(h("h1", { className: "visually-hidden" }, "Story"),
    h("form", { id: "story-form", className: "card stack", ariaLabel: "What the film shows", onsubmit: (event) => { event.preventDefault(); make().catch((error) => showProblem(refused = words(error.message))); } },
      h("div", { className: "head" }, h("h2", {}, "One prompt after the other, one film"), button("Start over", () => { const undo = toUndo(); freshStory(); drawAll(); undo(); }, { className: "link" })),
      h("div", { className: "from" }), h("div", { className: "timeline", ariaHidden: "true" }), h("ol", { className: "lines" }),
      h("div", { className: "actions" }, button([icon("create"), "Add a line"], () => insert(story.lines.length), { id: "add-line" })),
      h("p", { className: "quiet" }, NEEDS_NAME), settings, h("div", { id: "story-told", ariaLive: "polite", className: "stack tight" }),
      h("button", { type: "submit", id: "make-story", className: "primary large" }, icon("play"), h("span", {}, "Make the film"))),
    h("div", { id: "film", className: "stack" }));
  for (const [name, one] of Object.entries(fields)) if (!["model", "adapter", "causal"].includes(name)) one.set(story.fields[name]);
  buildFilm(document.getElementById("film"), { goOn });
  drawAll();
}

function drawAll() {
  drawFrom();
  drawSettings();
  drawLines();
  changed();
}

// Of a film that goes on, what stays of it, and that its settings stay.
function drawFrom() {
  const { from } = story;
  document.getElementById("story-settings").hidden = Boolean(from);
  document.querySelector("#make-story span").textContent = from ? "Make it from here on" : "Make the film";
  const kept = from?.kept.length ?? 0;
  document.querySelector("#story .from").replaceChildren(...(from ? [h("p", { className: "notice" }, kept
    ? `${kept === 1 ? "The first segment of the film stays as it is" : `The first ${kept} segments of the film stay as they are`}. What follows is made anew, as the film was:`
    : "The whole film is made anew, with the settings that it had:"),
  h("div", { className: "actions" }, button("Make a story of its own instead", () => { story.lines = [...from.kept, ...story.lines]; story.from = null; drawAll(); }, { className: "link" }))] : []));
}

function drawSettings() {
  const spec = specNow();
  if (!spec) return;
  fields.model.set(story.fields.model);
  const chunks = spec.stories.includes("chunks");
  if (!chunks) { delete story.fields.loras; delete story.fields.causal; }
  fields.adapter.element.hidden = !chunks;
  fields.causal.element.hidden = !chunks;
  fields.causal.set(story.fields.causal);
  fields.adapter.set(story.fields.loras?.[0]?.path ?? "");
  const kinds = chunks && inChunks();
  fields.remember.element.hidden = !kinds;
  if (!kinds) { delete story.fields.remember; fields.remember.set(""); }
  const place = document.getElementById("story-image");
  place.hidden = !spec.stories.includes("image");
  if (place.hidden) delete story.fields.image;
  const set = (id) => { if (id) story.fields.image = id; else delete story.fields.image; drawSettings(); changed(); };
  place.replaceChildren(place.hidden ? "" : zone("story-image", "Start image", "image/*,.heic,.avif", story.fields.image, { quiet: "drop or choose",
    take: async (file) => {
      try {
        const { id, kind } = await upload(file);
        if (kind !== "image") throw new Error("this is a clip; an image goes here");
        set(id);
      } catch (error) {
        say(error.message, true);
      }
    }, remove: () => set(null) }));
}

// The rows. Whoever moves one by keys stays on it.
function drawLines(focus = null) {
  const first = story.from?.kept.length ?? 0;
  rows().start = first + 1;
  rows().replaceChildren(...story.lines.map((line, index) => row(line, index, first)));
  showLooks();
  if (focus) rows().children[focus.index]?.querySelector(focus.on)?.focus();
}

function row(line, index, first) {
  const number_ = first + index + 1;
  const named = (what) => `${what} of line ${number_}`;
  const keep = (name, value) => { line[name] = value; changed(); };
  const prompt = h("textarea", { rows: 2, maxLength: 20000, value: line.prompt ?? "", className: "says", ariaLabel: named("Prompt"), placeholder: index ? "What happens next" : "What the film begins with", oninput: () => keep("prompt", prompt.value) });
  const name = h("input", { type: "text", maxLength: 32, value: line.name ?? "", ariaLabel: named("Name of the figure"), placeholder: "name", autocomplete: "off", oninput: () => { look.hidden = !name.value.trim(); keep("name", name.value); } });
  name.setAttribute("list", "story-names");
  const look = h("input", { type: "text", className: "look", maxLength: 20000, value: line.look ?? "", hidden: !line.name?.trim(), ariaLabel: named("Look of the figure"), title: "Told in place of the name, in this line and all later ones of that name", autocomplete: "off", oninput: () => keep("look", look.value) });
  const seconds = h("input", { type: "number", min: 0.1, max: 600, step: "any", value: line.seconds ?? "", ariaLabel: named("Seconds"), placeholder: "s", inputMode: "decimal", oninput: () => keep("seconds", seconds.value === "" ? null : Number(seconds.value)) });
  const cut = h("input", { type: "checkbox", checked: Boolean(line.cut), id: `cut-${number_}`, onchange: () => keep("cut", cut.checked) });
  const hidden = (what) => h("span", { className: "visually-hidden" }, `${what} line ${number_}`);
  const move = (by) => () => { arrange((lines) => { const [one] = lines.splice(index, 1); lines.splice(index + by, 0, one); }); drawLines({ index: index + by, on: by < 0 ? ".up:not(:disabled), .down" : ".down:not(:disabled), .up" }); changed(); };
  const grip = h("span", { className: "grip", title: "Drag to another place", draggable: true, ariaHidden: "true",
    ondragstart: (event) => { event.dataTransfer.setData("text/radial-line", String(index)); event.dataTransfer.setDragImage(item, 20, 20); } }, String(number_));
  const item = h("li", {
    ondragover: (event) => { if (event.dataTransfer.types.includes("text/radial-line")) { event.preventDefault(); item.classList.add("over"); } },
    ondragleave: () => item.classList.remove("over"),
    ondrop: (event) => {
      const at = event.dataTransfer.getData("text/radial-line");
      item.classList.remove("over");
      if (at === "") return;
      event.preventDefault();
      arrange((lines) => { const [one] = lines.splice(Number(at), 1); lines.splice(index, 0, one); });
      drawLines();
      changed();
    } },
  grip, h("div", { className: "line-fields" }, prompt,
    h("div", { className: "of-line" }, name, look, h("span", { className: "time" }, seconds, h("span", { className: "quiet planned" })),
      number_ > 1 ? h("span", { className: "check" }, cut, h("label", { htmlFor: cut.id }, "cut", h("span", { className: "visually-hidden" }, ` before line ${number_}`))) : "",
      memoryChoice("line", number_, first + story.lines.length, line.remember, (remember) => keep("remember", remember)),
      line.seed === undefined || line.seed === null ? "" : h("span", { className: "quiet" }, "drawn anew"))),
  h("div", { className: "actions" },
    button([icon("up"), hidden("Move up")], move(-1), { className: "bare up", disabled: index === 0 }),
    button([icon("down"), hidden("Move down")], move(1), { className: "bare down", disabled: index === story.lines.length - 1 }),
    button([icon("create"), hidden("Insert a line behind")], () => insert(index + 1), { className: "bare", title: "Insert a line behind it" }),
    button([icon("close"), hidden("Remove")], () => { arrange((lines) => lines.splice(index, 1)); drawLines({ index: Math.min(index, story.lines.length - 1), on: ".says" }); changed(); }, { className: "bare", title: "Remove it", disabled: story.lines.length === 1 })));
  return item;
}

// A line that gives no look shows the one that it is told with.
function showLooks() {
  const looks = {};
  for (const [index, line] of [...(story.from?.kept ?? []), ...story.lines].entries()) {
    const name = line.name?.trim().toLowerCase();
    const field = rows().children[index - (story.from?.kept.length ?? 0)]?.querySelector(".look");
    if (field) field.placeholder = looks[name] ?? "what it looks like";
    if (name && line.look?.trim()) looks[name] = line.look.trim();
  }
}

// Changes the order of the lines: those that are remembered as another one follow it.
function arrange(change) {
  const all = () => [...(story.from?.kept ?? []), ...story.lines];
  const before = all();
  const others = new Map(before.filter((line) => typeof line.remember === "number").map((line) => [line, before[line.remember - 1]]));
  change(story.lines);
  const now = all();
  for (const [line, other] of others) line.remember = now.indexOf(other) + 1 || null;
}

function insert(index) {
  arrange((lines) => lines.splice(index, 0, { prompt: "" }));
  drawLines({ index, on: ".says" });
  changed();
}

function changed() {
  refused = "";
  keepStory();
  rows().classList.toggle("unremembered", !remembers());
  showLooks();
  const names = [...new Set([...(story.from?.kept ?? []), ...story.lines].map((line) => line.name?.trim()).filter(Boolean))];
  document.querySelector("#story-names")?.remove();
  document.getElementById("story-form").append(h("datalist", { id: "story-names" }, ...names.map((one) => h("option", { value: one }))));
  tell().catch((error) => say(error.message, true));
}

const empty = () => story.lines.findIndex((line) => !line.prompt?.trim());
const told = (lines) => lines.map((line) => written(remembers() ? line : { ...line, remember: null }));
const body = (lines) => ({ lines: told(lines), ...story.fields });

// What the lines make, asked whenever one of them changes; one question at a time.
async function tell() {
  again = true;
  if (asking) return;
  asking = true;
  try {
    while (again) {
      again = false;
      const all = [...(story.from?.kept ?? []), ...story.lines].map((line) => (line.prompt?.trim() ? line : { ...line, prompt: "-" }));
      const found = await call("POST", "/v1/stories/check", story.from ? { ...story.from.fields, lines: told(all) } : body(all)).catch((error) => ({ problem: error.message, lost: error.lost }));
      if (again) continue;
      if (found.lost) return void addEventListener("radial-back", tell, { once: true });
      plan = found;
      if (found.problem || refused) showProblem(refused || words(found.problem));
      else showPlan();
    }
  } finally {
    asking = false;
  }
}

function showProblem(message) {
  document.getElementById("story-told").replaceChildren(h("p", { className: "problem", role: "alert" }, message));
  for (const one of document.querySelectorAll("#story .planned")) one.textContent = "";
}

function showPlan() {
  const first = story.from?.kept.length ?? 0;
  [...document.querySelectorAll("#story .planned")].forEach((one, index) => {
    const segment = plan.segments[first + index];
    one.textContent = segment ? `${segment.begin.toFixed(1)} to ${segment.end.toFixed(1)} s` : "";
  });
  document.querySelector("#story .timeline").replaceChildren(...plan.segments.map((segment, index) => {
    const part = h("span", { className: index < first ? "stays" : (story.lines[index - first]?.cut && index ? "cut" : ""), title: `${segment.begin.toFixed(1)} to ${segment.end.toFixed(1)} s`,
      onclick: () => rows().children[index - first]?.querySelector(".says").focus() }, String(index + 1));
    part.style.flexGrow = segment.end - segment.begin;
    return part;
  }));
  const spec = modelsThat((one) => one.id === plan.request.model)[0];
  const said = plan.way === "chunks" ? `In chunks: what each segment leaves is remembered (${(REMEMBERS.find(([kind]) => kind === plan.remembers.kind) ?? ["", plan.remembers.kind])[1]}).`
    : "In windows: each begins with the last frames of the one before, and sees no more. A figure that was away comes back as its words say, not as it was: say once what one with a name looks like, and all its lines tell it.";
  document.getElementById("story-told").replaceChildren(
    h("p", { className: "facts-line" }, h("b", {}, `${plan.seconds.toFixed(1)} s`), h("span", {}, many(plan.segments.length, "segment")), h("span", {}, `${plan.request.width}x${plan.request.height}`), plan.lack ? "" : h("span", { className: "fits" }, "fits this machine")),
    plan.lack ? h("p", { className: "problem", role: "alert" }, `It does not fit: a part of it ${plan.lack}.`) : "",
    plan.on_disk ? "" : h("p", { className: "warn" }, `${plan.request.model} is not on this machine yet: it is downloaded first.`),
    !plan.on_gpu && spec && spec.memory > 8e9 ? h("p", { className: "warn" }, "This machine has no GPU for it: on the CPU it takes hours, if it ends at all.") : "",
    h("p", { className: "quiet" }, said), ...plan.notes.map((note) => h("p", { className: "quiet" }, note)));
}

async function make() {
  const at = empty();
  if (at >= 0) {
    refused = `Line ${(story.from?.kept.length ?? 0) + at + 1} is empty: write what it shows, or remove it.`;
    showProblem(refused);
    rows().children[at].querySelector(".says").focus();
    return;
  }
  const lines = told(story.lines);
  const made = story.from ? await call("POST", `/v1/stories/${story.from.id}/continue`, { lines, keep: story.from.kept.length }) : await call("POST", "/v1/stories", body(story.lines));
  story.shown = made.id;
  keepStory();
  openFilm(made);
  say("Queued. It plays as soon as its first part is there.");
}

// Lines for what follows the first `keep` segments of a story; the one behind them is drawn anew where it stays in words.
function goOn(film, keep, drawn) {
  const undo = toUndo();
  const lines = linesOf(film.segments);
  const rest = film.request;
  story.from = { id: film.id, remembers: film.way === "chunks" && film.remembers.kind !== "none", kept: lines.slice(0, keep), fields: { model: rest.model, size: film.size, seconds: film.line_seconds, loras: rest.loras, ...(rest.image ? { image: rest.image } : {}), ...(film.way === "chunks" ? { causal: true, remember: film.remembers.kind } : {}) } };
  story.lines = lines.slice(keep);
  if (!story.lines.length) story.lines = [{ prompt: "" }];
  else if (drawn) story.lines[0].seed = Math.floor(Math.random() * 2 ** 31);
  keepStory();
  openPlace("story");
  drawAll();
  rows().querySelector(".says").focus();
  undo();
}

// Call it before lines are replaced: what it gives offers them back, where anything was written.
function toUndo() {
  const before = structuredClone({ lines: story.lines, from: story.from });
  return () => before.lines.some((line) => line.prompt.trim()) && say("Other lines stand here now.", false, ["Undo", () => { Object.assign(story, before); keepStory(); drawAll(); }]);
}
