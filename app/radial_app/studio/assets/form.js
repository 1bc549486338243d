// Create's form: its fields, what of them applies to a model, and what they make.
import { button, bytes, call, dialog, h, icon, lengthOf, many, say } from "./dom.js";
import { BROUGHT, defaults, draft, keepDraft, prompts, remember, then, withoutFiles } from "./draft.js";
import { ask as askPlan, planned, showProblem } from "./estimate.js";
import { check, choice, group, number, switches, text } from "./fields.js";
import { finishFields } from "./finishing.js";
import { drawLoras, drawZones, ZONES } from "./inputs.js";

const DRAFT = "draft";
const FILES = [["mp4,h264", "MP4 (H.264), plays everywhere"], ["mp4,h265", "MP4 (H.265), smaller"], ["mp4,av1", "MP4 (AV1), smallest"], ["webm,vp9", "WebM (VP9)"],
  ["webm,av1", "WebM (AV1)"], ["gif,", "GIF"], ["png,", "PNG frames"]];
const LABELS = { num_frames: "Length", height: "Height", width: "Width", num_inference_steps: "Steps", guidance_scale: "Guidance", num_videos: "Videos", image: "Start image",
  last_image: "End image", extend: "Clip to extend", control_video: "Control video", face_video: "Face video", background_video: "Background video", mask: "Mask", references: "References", keyframes: "Images at frames", loras: "Adapters" };
let models = [], policies = [];
let limits = {};
let presets = {};
let own = {}; // settings by names of one's own
const fields = {};
let times, length, size, quality, model, onDisk, finishing;

export const modelNow = () => models.find((one) => one.id === draft.request.model) ?? models[0];
export const modelsThat = (test) => models.filter(test);
export const words = (message) => Object.entries({ ...Object.fromEntries(Object.values(fields).map((one) => [one.name, one.label])), ...LABELS })
  .reduce((told, [name, label]) => told.replace(new RegExp(`(^|; )${name}(?=[ :])`, "g"), `$1${label}`), message).replace(/ \(--[^)]*\)/g, "");
export const fieldOf = (name) => ({ height: size, width: size, size, num_frames: length, seconds: length })[name] ?? fields[name];

// Put a value into the draft; undefined leaves the field open.
export function put(name, value, place = draft.request) {
  if (value === undefined || value === null || value === "") delete place[name];
  else place[name] = value;
  changed();
}

function changed() {
  keepDraft();
  for (const one of Object.values(fields)) one.blame("");
  [size, length].forEach((one) => one.blame(""));
  // Fields that the page itself can judge are told at once, beside them.
  const wrong = Object.values(fields).filter((one) => one.fault());
  for (const one of wrong) one.blame(one.fault());
  showLines();
  if (!wrong.length) askPlan(draft, () => dispatchEvent(new CustomEvent("radial-plan", { detail: planned() })));
  drawLength();
}

// The form shows a request, whoever made it.
export function fill(request, file) {
  draft.request = Object.fromEntries(Object.entries(request).filter(([, value]) => value !== null && value !== undefined && !(Array.isArray(value) && !value.length)));
  draft.request.prompt ??= "";
  draft.request.model ??= "tiny";
  if (request.loras?.length === 1 && request.loras[0].path?.startsWith("bundled:") && request.long_adapter !== false) delete draft.request.loras;
  if (file) draft.file = file;
  delete draft.finish;
  draft.quality = "standard";
  show();
}

// The form shows what made a video, and says what of it is not among one's own.
export function fillFrom(video) {
  fill(video.request);
  if (video.notes.length) say(`${video.notes.join("; ")}.`);
}

// What asks which models there are waits for them: another place may be shown, and clicked in, before the form is there.
export let formReady;
export const buildForm = (place) => (formReady = build(place));

async function build(place) {
  const [{ data, presets: named }, told, measured] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/fields"), call("GET", "/v1/policies"), loadPresets()]);
  policies = measured.filter((one) => !one.problem);
  models = data.filter((one) => !one.problem && one.starts_from.length);
  limits = told;
  presets = named;
  if (!models.some((one) => one.id === draft.request.model)) draft.request.model = models[0].id;
  place.replaceChildren(...layout());
  for (const [name, one] of Object.entries(fields)) one.control.title = limits[name]?.description ?? "";
  show();
  showEditing();
}

async function loadPresets() {
  own = Object.fromEntries((await call("GET", "/v1/presets")).map((one) => [one.name, one.fields]));
}

function layout() {
  const plain = (name, label, more = {}) => (fields[name] = number(name, label, { ...limits[name], change: () => put(name, fields[name].get()), ...more })).element;
  const pick = (name, label, options, more = {}) => (fields[name] = choice(name, label, options, { change: () => put(name, meant(name, fields[name].get())), ...more })).element;
  const tick = (name, label, value, hint) => (fields[name] = check(name, label, { value, hint, change: () => put(name, fields[name].get()) })).element;

  fields.prompt = text("prompt", "Prompt", { rows: 4, placeholder: "What the clip shows", change: () => put("prompt", fields.prompt.get() ?? "") });
  fields.prompt.control.id = "prompt";
  fields.prompt.element.querySelector("label").htmlFor = "prompt";
  fields.then = text("then", "What happens next", { rows: 2, whole: true, hint: "one prompt a line; each has an equal share of the clip, or begins when it says, such as 2s:", change: () => put("then", fields.then.get()) });
  model = choice("model", "Model", [], { change: () => chooseModel(model.get()) });
  onDisk = h("div");
  quality = choice("quality", "Quality", [], { change: () => chooseQuality(quality.get()) });
  length = sliderField();
  times = switches("Times the native length", [1, 2, 3, 4].map((n) => [n, `${n}x`, `${n} times the length that the model was trained for`]), (n) => put("num_frames", lengthOf(modelNow(), modelNow().stride[0], Number(n))));
  size = text("size", "Size", { maxLength: 11, list: "sizes", change: () => takeSize(size.get()) });
  fields.num_videos = number("num_videos", "Videos", { ...limits.num_videos, placeholder: "1", change: () => put("num_videos", fields.num_videos.get()) });
  fields.seed = number("seed", "Seed", { ...limits.seed, placeholder: "drawn anew", change: () => put("seed", fields.seed.get()) });
  const dice = button([icon("dice"), h("span", { className: "visually-hidden" }, "Draw a seed")], () => { fields.seed.set(Math.floor(Math.random() * 2 ** 31)); put("seed", fields.seed.get()); }, { title: "Draw a seed" });
  const seedLine = h("span", { className: "beside" });
  fields.seed.control.replaceWith(seedLine);
  seedLine.append(fields.seed.control, dice);
  const keep = check("keep", "Keep this seed", { change: () => { draft.keep = Boolean(keep.get()); keepDraft(); } });
  keep.set(draft.keep);
  fields.keep = keep;
  fields.negative_prompt = text("negative_prompt", "Words to avoid", { rows: 2, whole: true, change: () => put("negative_prompt", fields.negative_prompt.get()) });
  const file = choice("file", "File", FILES, { change: () => { const [format, codec] = file.get().split(","); Object.assign(draft.file, { format, codec: codec || undefined }); if (!codec) delete draft.file.crf; changed(); show(); } });
  fields.file = file;
  file.set = ((plain) => () => plain(draft.file.format ? `${draft.file.format},${draft.file.codec ?? ""}` : FILES[0][0]))(file.set);
  fields.crf = number("crf", "Quality of the file", { type: "integer", minimum: 0, maximum: 63, placeholder: "as good as needed", hint: "CRF: lower is better and larger", change: () => put("crf", fields.crf.get(), draft.file) });
  fields.name = text("name", "Name of the file", { maxLength: 500, placeholder: "{slug}-{seed}", change: () => put("name", fields.name.get(), draft.file) });
  finishing = finishFields(["frames", "scale", "aspect", "loop"], () => { draft.finish = finishing.get(); changed(); }, "then");
  fields.metadata = check("metadata", "Keep the settings in the file", { value: true, change: () => put("metadata", fields.metadata.get(), draft.file) });

  return [
    h("form", { id: "form", className: "card stack", ariaLabel: "What to make", onsubmit: (event) => { event.preventDefault(); generate(); } },
      h("div", {}, fields.prompt.element,
        h("div", { className: "actions" }, button("Earlier prompts", showHistory, { className: "link" }), button("Start over", () => fill({ prompt: "", model: draft.request.model, ...defaults().request }, defaults().file ?? {}), { className: "link", id: "start-over" }))),
      h("div", { id: "estimate", ariaLive: "polite" }),
      h("div", { id: "editing", className: "actions", role: "status", hidden: true }),
      h("div", { className: "beside" }, h("button", { type: "submit", id: "generate", className: "primary large" }, icon("play"), h("span", {}, "Generate")), button("", generateLines, { id: "one-a-line", hidden: true })),
      h("div", { className: "fields wide" }, h("div", { className: "stack tight" }, model.element, onDisk), h("div", {}, quality.element, h("div", { className: "actions" }, button("Keep these settings by name", savePreset, { className: "link" })))),
      h("div", { className: "field" }, length.element, times.element),
      h("div", { className: "fields" }, size.element, fields.num_videos.element, fields.seed.element, keep.element),
      h("datalist", { id: "sizes" }),
      h("div", { id: "zones", className: "zones" }),
      h("details", { id: "steering" }, h("summary", {}, "Steer it by clips and images"), h("div", { className: "stack" }, h("div", { id: "steering-zones", className: "zones" }), plain("strength", "How far from the clip", { placeholder: "0 hardly, 1 wholly", hint: "makes the clip itself over; without it the clip is a signal" }),
        tick("keep_unmasked", "What the mask leaves black stays to the pixel", true))),
      h("div", { id: "loras", className: "stack" }),
      h("details", { id: "advanced" }, h("summary", {}, "Advanced"), h("div", { className: "stack" },
        group("Sampling", pick("enhance", "Prompt at more length", [["", "as written"], ...(limits.enhance?.choices ?? []).map((name) => [name, name])], { hint: "by a language model; both prompts are kept" }), fields.then.element, fields.negative_prompt.element, h("div", { className: "fields" }, plain("num_inference_steps", "Steps"), plain("guidance_scale", "Guidance"), plain("guidance_scale_2", "Guidance, second expert"), plain("guidance_start", "Guidance from", { placeholder: "0", hint: "a share of the steps; outside it each takes half the time" }), plain("guidance_end", "Guidance to", { placeholder: "1", hint: "a share of the steps" }),
          plain("true_cfg_scale", "True guidance"), plain("fps", "Frames a second"), plain("num_frames", "Frames, exactly"), pick("sampler", "Sampler", [["", "the model's own"], ["euler", "Euler"], ["lcm", "LCM, for few steps"], ["unipc", "UniPC"]]), plain("flow_shift", "Flow shift"), pick("cache", "What steps share", [["", "computed anew"], ["auto", "left out, with care"], ["fast", "left out, faster"]], { hint: "A step cache: another clip, in less time; from 10 steps on" }), pick("decoder", "Decoder", [["", "the model's own"], ["tiny", "tiny, for drafts"]], { hint: "Frames in a fraction of the time, less sharp" }), tick("batched_guidance", "Both passes of guidance in one call", false, "Faster for small clips, in more memory"))),
        h("div", { id: "on-images" }, group("Images", h("div", { className: "fields" }, pick("image_fit", "Of another shape", [["", "cut"], ["pad", "framed"], ["stretch", "stretched"]]),
          (fields.image_ground = text("image_ground", "Under see-through parts", { placeholder: "black", maxLength: 40, change: () => put("image_ground", fields.image_ground.get()) })).element))),
        group("Attention", h("div", { className: "fields" }, pick("attention", "Attention", [["", "radial, or as tuned"], ["radial", "radial"], ["adaptive", "adaptive, by content"], ["dense", "dense"]]), plain("decay", "Window (decay)"), plain("density", "Density, where adaptive", { placeholder: "0.3", hint: "share of blocks that are computed" }),
          plain("dense_layers", "Dense layers"), plain("dense_steps", "Dense first steps"), plain("dense_last_steps", "Dense last steps"), plain("dense_every", "Dense every so many steps", { placeholder: "0: none", hint: "dense steps in between bring the clip back onto its way" }), plain("dense_above", "Dense after a step that is off by more than", { placeholder: "0: never", hint: "a few rows of sparse attention are computed exactly beside it; while it renders, the recall is told" }), plain("early_density", "Density of first steps, where adaptive", { placeholder: "1: dense" }),
          pick("policy", "Policy", [["", "none"], ...policies.map((one) => [one.id, `${one.id.replace(/\.safetensors$/, "")}: ${one.model}, ${one.width}x${one.height}, ${one.num_frames} frames`])], { hint: "measured on the model: it chooses which layers are dense at which steps" }), plain("target_share", "Work of the policy", { placeholder: "0.4", hint: "share of attention that it may compute: less is faster" }),
          pick("block_size", "Block size", [["", "the model's own"], ...[16, 32, 64, 128, 256].map((n) => [n, n])]), pick("far_field", "Far field", [["", "as tuned, or dropped; adaptive: means"], ["drop", "dropped"], ["mean", "a mean for each block"], ["pyramid", "means, coarser with distance"]], { hint: "what becomes of blocks that radial attention leaves out" }), pick("token_order", "Order of tokens", [["", "as tuned, or raster; adaptive: columns"], ["raster", "raster"], ["columns", "columns along time"]]), pick("riflex", "RIFLEx", [["", "as tuned"], ["true", "on"], ["false", "off"]]), pick("positions", "Positions in longer clips", [["", "the model's own"], ["interpolate", "interpolated"], ["ntk", "NTK-aware"], ["yarn", "YaRN"], ["riflex", "RIFLEx"]])), tick("long_adapter", "Use the model's own adapter for longer clips", true)),
        group("Machine", h("div", { className: "fields" }, pick("memory", "On the GPU", [["", "as much as fits"], ["full", "all of it"], ["balanced", "balanced"], ["low", "little"], ["lowest", "the least"]]),
          pick("precision", "Precision", [["", "full"], ["eight_bit", "8 bit, faster"], ["eight_bit_weights", "8-bit weights, half the memory"]]), pick("dtype", "Numbers", [["", "as the model wants"], ["float32", "float32"], ["bfloat16", "bfloat16"], ["float16", "float16"]]),
          (fields.device = text("device", "Device", { placeholder: "auto", maxLength: 20, change: () => put("device", fields.device.get()) })).element), tick("snap", "Take the nearest size that can be made", false)),
        group("When it is made, finished beside it", h("div", { className: "fields", id: "then-finish" }, ...finishing.elements)),
        group("File", h("div", { className: "fields wide" }, file.element, fields.crf.element, fields.name.element), fields.metadata.element)))),
  ];
}

// How images and clips of another shape are fitted: where there are some.
const showFit = () => { document.getElementById("on-images").hidden = !modelNow().starts_from.includes("image") && !BROUGHT.some((name) => draft.request[name]); };
addEventListener("radial-steered", () => { fields.strength.set(draft.request.strength); showFit(); fields.keep_unmasked.element.hidden = !draft.request.mask; });

// Lists hold words alone.
const meant = (name, value) => (value === undefined ? undefined : name === "riflex" ? value === "true" : name === "block_size" ? Number(value) : value);

function sliderField() {
  const control = h("input", { type: "range", name: "length", id: "length" });
  const told = h("output", { className: "quiet", htmlFor: "length" });
  const fault = h("span", { className: "fault", hidden: true });
  control.addEventListener("input", () => put("num_frames", Number(control.value) * modelNow().stride[0] + modelNow().first_frame));
  return { name: "num_frames", label: "Length", control, told, element: h("div", { className: "field" }, h("span", { className: "line" }, h("label", { htmlFor: "length" }, "Length"), told), control, fault),
    blame: (text) => { fault.textContent = text ?? ""; fault.hidden = !text; if (text) control.setAttribute("aria-invalid", "true"); else control.removeAttribute("aria-invalid"); }, fault: () => "" };
}

function drawLength() {
  const spec = modelNow();
  const [stride] = spec.stride;
  const frames = draft.request.num_frames ?? spec.num_frames;
  const index = (count) => Math.round((count - spec.first_frame) / stride);
  const { control, told } = length;
  control.min = spec.first_frame ? 0 : 1;
  control.max = Math.max(index(lengthOf(spec, stride, 4)), Math.ceil((10 * (draft.request.fps ?? spec.fps)) / stride), index(frames));
  control.value = index(frames);
  const seconds = (frames / (draft.request.fps ?? spec.fps)).toFixed(1);
  told.textContent = `${seconds} s, ${many(frames, "frame")}`;
  control.setAttribute("aria-valuetext", told.textContent);
  times.show([1, 2, 3, 4].find((n) => lengthOf(spec, stride, n) === frames));
  if (document.activeElement !== fields.num_frames.control) fields.num_frames.set(draft.request.num_frames);
}

function takeSize(written) {
  const match = /^\s*(\d+)\s*[x×]\s*(\d+)\s*$/i.exec(written ?? "");
  delete draft.request.width;
  delete draft.request.height;
  if (match) Object.assign(draft.request, { width: Number(match[1]), height: Number(match[2]) });
  changed();
  if (written && !match) size.blame("Size: width x height in pixels, such as 832x480");
}

// What of the form applies to the model, and what its fields hold.
function show() {
  const spec = modelNow();
  const { request } = draft;
  const here = models.filter((one) => one.on_disk || one.own);
  const away = (from) => models.filter((one) => !here.includes(one) && (from === "text") === one.starts_from.includes("text"));
  const options = (list) => list.map((one) => [one.id, one.id]);
  model.fill([{ group: "On this machine", options: options(here) }, { group: "To download, from words", options: options(away("text")) }, { group: "To download, from an image", options: options(away("image")) }].filter((one) => one.options.length));
  model.set(spec.id);
  const few = switches("Models on this machine", here.map((one) => [one.id, one.id]), (id) => chooseModel(id));
  few.show(spec.id);
  onDisk.replaceChildren(here.length > 1 && here.length < 6 ? few.element : "");
  const from = spec.starts_from[0] === "control" ? "from a clip that it follows" : spec.starts_from.length === 2 ? "from words or an image" : spec.starts_from[0] === "text" ? "from words" : spec.needs_last_image ? "from one image to another" : "from an image";
  model.hint(`${spec.summary}; ${from}${spec.on_disk || spec.own ? "" : `; ${spec.download ? `about ${bytes(spec.download)} ` : ""}to download when it is first used`}`);
  quality.fill([["standard", `standard, ${many(spec.num_inference_steps, "step")}`], [DRAFT, `draft, ${many(draftSteps(spec), "step")}`],
    { group: "For few-step adapters", options: Object.keys(presets).map((name) => [name, name]) }, { group: "Your own", options: Object.keys(own).map((name) => [`own:${name}`, name]) }].filter((one) => !one.group || one.options.length));
  quality.set(draft.quality);
  fields.negative_prompt.control.placeholder = spec.negative_prompt;
  for (const name of ["num_inference_steps", "guidance_scale", "fps", "num_frames"]) fields[name].control.placeholder = spec[name];
  document.getElementById("sizes").replaceChildren(...sizesOf(spec).map((one) => h("option", { value: one })));
  size.control.placeholder = `${spec.width}x${spec.height}`;
  if (document.activeElement !== size.control) size.set(request.width || request.height ? `${request.width ?? spec.width}x${request.height ?? spec.height}` : "");
  const images = spec.starts_from.includes("image");
  const dropped = [];
  const drop = (name) => { if (name in request) dropped.push(LABELS[name] ?? fields[name].label); delete request[name]; };
  for (const name of Object.keys(ZONES)) if (!images || (name === "last_image" && !spec.takes_last_image)) drop(name);
  for (const name of BROUGHT) if (!(name in ZONES) && !spec.steered_by.includes(name) && !(name === "control_video" && spec.steered_by.includes("strength"))) drop(name);
  if (dropped.length) say(`${spec.id} does not take these, and they are left out: ${dropped.join(", ")}.`);
  const applies = { keep_unmasked: Boolean(request.mask), enhance: Boolean(limits.enhance?.choices?.length), strength: spec.steered_by.includes("strength"), guidance_scale_2: spec.has_two_transformers, true_cfg_scale: spec.guidance_is_embedded, sampler: spec.is_flow, flow_shift: spec.is_flow, riflex: spec.knows_riflex, positions: spec.knows_positions, cache: spec.knows_cache, then: spec.knows_timed_prompts, decoder: spec.knows_tiny_decoder, batched_guidance: spec.knows_batched_guidance };
  for (const name of ["negative_prompt", "guidance_scale", "guidance_start", "guidance_end"]) applies[name] = !spec.guidance_is_within;
  for (const [name, does] of Object.entries(applies)) { fields[name].element.hidden = !does; if (!does) delete request[name]; }
  showFit();
  if (BROUGHT.some((name) => !(name in ZONES) && request[name])) document.getElementById("steering").open = true;
  for (const [name, one] of Object.entries(fields)) {
    if (["file", "keep"].includes(name)) continue;
    const value = ["crf", "name", "metadata"].includes(name) ? draft.file[name] : request[name];
    one.set(Array.isArray(value) ? value.join("\n") : value);  // a prompt a line
  }
  fields.file.set();
  finishing.set(draft.finish ?? {});
  fields.crf.element.hidden = ["gif", "png"].includes(draft.file.format);
  drawZones(spec);
  drawLoras();
  changed();
}

export const redraw = show;
const draftSteps = (spec) => Math.max(4, Math.round(spec.num_inference_steps / 3));

function sizesOf(spec) {
  const [, down, across] = spec.stride;
  const side = Math.sqrt(spec.width * spec.height);
  const round = (value, step) => Math.max(1, Math.round(value / step)) * step;
  const shapes = [[spec.width, spec.height], [spec.height, spec.width], [side, side], [spec.width * 0.75, spec.height * 0.75], [spec.width / 2, spec.height / 2]];
  return [...new Set(shapes.map(([width, height]) => `${round(width, across)}x${round(height, down)}`))];
}

// Another model begins with its own values; the words and what the clip starts from stay.
export function chooseModel(id) {
  const { prompt, seed, num_videos, loras } = draft.request;
  const brought = Object.fromEntries(BROUGHT.map((name) => [name, draft.request[name]]));
  draft.request = Object.fromEntries(Object.entries({ prompt, model: id, seed, num_videos, ...brought, loras }).filter(([, value]) => value !== undefined));
  if (draft.quality.startsWith("own:")) draft.quality = "standard";
  applyQuality();
  show();
}

function chooseQuality(name) {
  draft.quality = name;
  for (const one of ["num_inference_steps", "guidance_scale", "guidance_scale_2", "sampler", "flow_shift", "preset"]) delete draft.request[one];
  applyQuality();
  show();
}

function applyQuality() {
  if (draft.quality === DRAFT) draft.request.num_inference_steps = draftSteps(modelNow());
  else if (draft.quality in presets) draft.request.preset = draft.quality;
  else if (draft.quality.startsWith("own:")) Object.assign(draft.request, own[draft.quality.slice(4)]);
  if (!(draft.quality in presets)) delete draft.request.preset;
}

function savePreset() {
  const name = h("input", { maxLength: 40, ariaLabel: "Name" });
  const { prompt, seed, model: of, ...settings } = withoutFiles(draft.request);
  const box = dialog("Keep these settings", h("p", {}, "All that differs from the model's own values, without the prompt, the seed and images. It stands under Quality, and radial generate --preset takes it by its name."), name,
    h("div", { className: "actions" }, button("Keep", async () => {
      const called = name.value.trim();
      if (!called) throw new Error("give the settings a name");
      await call("PUT", `/v1/presets/${encodeURIComponent(called)}`, settings);
      await loadPresets();
      draft.quality = `own:${called}`;
      box.close();
      show();
    }, { className: "primary" }), ...Object.keys(own).map((old) => button(`Forget "${old}"`, async () => { await call("DELETE", `/v1/presets/${encodeURIComponent(old)}`); await loadPresets(); box.close(); show(); }))));
}

function showHistory() {
  const box = dialog("Earlier prompts", prompts().length ? h("div", { className: "examples" }, ...prompts().map((one) => button(one, () => { fields.prompt.set(one); put("prompt", one); box.close(); }))) : h("p", { className: "quiet" }, "None yet: what you generate is listed here, in this browser alone."));
}

// A field that cannot be: shown, opened, and given the focus.
export function reveal(one) {
  const details = one.element.closest("details");
  if (details) details.open = true;
  one.control.focus();
}

export async function generate() {
  const wrong = [...Object.values(fields)].find((one) => one.fault()) ?? (size.control.getAttribute("aria-invalid") === "true" ? size : null);
  if (wrong) return reveal(wrong);
  if (!draft.request.prompt.trim()) {
    fields.prompt.blame("Prompt: say what the clip shows");
    return reveal(fields.prompt);
  }
  if (draft.editing) return saveJob();
  const press = document.getElementById("generate");
  press.disabled = true;
  try {
    const file = Object.keys(draft.file).length ? { file: draft.file } : {};
    const video = await call("POST", "/v1/videos", { ...draft.request, ...file, ...then() });
    remember(draft.request.prompt);
    if (draft.keep) { fields.seed.set(video.request.seed); put("seed", video.request.seed); }
    say(`${many(video.request.num_videos, "video")} queued, seed ${video.request.seed}.`);
    dispatchEvent(new CustomEvent("radial-queued", { detail: video }));
  } catch (error) {
    showProblem(words(error.message), error.param);
    const one = fieldOf(error.param);
    if (one && one.element.offsetParent === null) reveal(one);
  } finally {
    press.disabled = false;
  }
}

// A prompt of several lines may be meant as one clip, or as one a line.
const linesOf = () => (draft.request.prompt ?? "").split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#"));

function showLines() {
  const press = document.getElementById("one-a-line");
  if (!press) return;
  press.hidden = linesOf().length < 2 || Boolean(draft.editing);
  press.textContent = `One clip a line: ${linesOf().length}`;
}

async function generateLines() {
  const { prompt, seed, num_videos, ...defaults } = draft.request;
  const { ids } = await call("POST", "/v1/lists", { text: prompt, kind: "txt", defaults: { ...defaults, ...then() }, ...(Object.keys(draft.file).length ? { file: draft.file } : {}) });
  remember(prompt);
  say(`${many(ids.length, "video")} queued.`);
  dispatchEvent(new CustomEvent("radial-queued"));
}

// A job that waits, in the form: it is held meanwhile, keeps its place, and what was in the form comes back after.
export async function editJob(video) {
  const before = draft.editing?.before ?? structuredClone({ request: draft.request, file: draft.file, quality: draft.quality });
  if (draft.editing) await endEditing();
  const held = video.state === "queued";
  if (held) await call("POST", `/v1/videos/${video.id}/pause`);
  draft.editing = { id: video.id, held, request: video.request, before };
  fillFrom(video);
  showEditing();
}

function showEditing() {
  const place = document.getElementById("editing");
  place.hidden = !draft.editing;
  place.replaceChildren(...(draft.editing ? [h("strong", {}, "This one waits in the queue."), button("Leave it as it was", () => endEditing())] : []));
  document.querySelector("#generate span").textContent = draft.editing ? "Save it" : "Generate";
  showLines();
}

async function endEditing() {
  const { id, held, before } = draft.editing;
  delete draft.editing;
  Object.assign(draft, before);
  showEditing();
  show();
  if (held) await call("POST", `/v1/videos/${id}/resume`);
}

async function saveJob() {
  const { id, request } = draft.editing;
  const changes = {};
  for (const name of new Set([...Object.keys(request), ...Object.keys(draft.request)])) {
    // What the form leaves open means what it means in a request that does not name it.
    const [was, now] = [request, draft.request].map((one) => one[name] ?? limits[name]?.default ?? null);
    const none = (value) => value === null || (Array.isArray(value) && !value.length);
    if (!(none(was) && none(now)) && JSON.stringify(was) !== JSON.stringify(now)) changes[name] = now ?? (Array.isArray(was) ? [] : null);
  }
  try {
    if (Object.keys(changes).length) await call("PATCH", `/v1/videos/${id}`, { request: changes });
    await endEditing();
    say("Saved; it keeps its place in the queue.");
  } catch (error) {
    showProblem(words(error.message), error.param);
  }
}
