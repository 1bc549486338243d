// What a clip starts from and ends on, adapters with their weights, and settings out of a video.
import { button, call, h, say } from "./dom.js";
import { draft } from "./draft.js";
import { fill, put as putField } from "./form.js";
import { addMany } from "./list.js";
import { openPlace } from "./router.js";
import { withImages } from "./start_from.js";
import { drawSteering } from "./steering.js";

export const ZONES = { image: ["Start image", "image/*,.heic,.avif"], last_image: ["End image", "image/*,.heic,.avif"], extend: ["Clip to extend", "video/*"] };
let adapters = [];
let spec = null;

export function drawZones(now) {
  spec = now;
  const able = Object.keys(ZONES).filter((name) => name !== "last_image" || spec.takes_last_image);
  document.getElementById("zones").replaceChildren(...able.map((name) => zone(name, ...ZONES[name], draft.request[name])));
  drawSteering(spec);
}

export function put(name, id) {
  if (id && name === "extend") delete draft.request.image;
  if (id && name === "image") delete draft.request.extend;
  putField(name, id);
  drawZones(spec);
}

// `take` is given the file that was dropped or chosen, `remove` takes it away again.
export function zone(name, label, accept, id, { take = (file) => bring(name, file), remove = () => put(name, null), quiet = spec.starts_from.includes("image") ? "drop or choose" : "takes another model" } = {}) {
  const file = h("input", { type: "file", accept, hidden: true, onchange: () => file.files[0] && take(file.files[0]) });
  const box = h("button", { type: "button", className: `zone${id ? " full" : ""}`, dataset: { zone: name }, ariaLabel: id ? `${label}: chosen; choose another` : label, onclick: () => file.click(),
    ondragover: (event) => { event.preventDefault(); box.classList.add("over"); },
    ondragleave: () => box.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); box.classList.remove("over"); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); } },
  id ? look(id) : h("span", {}, label), id ? "" : h("span", { className: "quiet" }, quiet));
  return h("div", { className: "zone-box" }, box, file, id ? button("Remove", remove, { ariaLabel: `Remove ${label.toLowerCase()}` }) : "");
}

function look(id) {
  const match = /^video:([0-9a-f]+)\/?(\d*)$/.exec(id);
  if (match) return h("img", { src: `/v1/videos/${match[1]}/content?variant=thumbnail&index=${match[2] || 0}`, alt: "" });
  if (/\.(mp4|webm)$/.test(id)) return h("video", { src: `/v1/files/${id}`, muted: true, preload: "metadata" });
  // What a browser cannot draw, as pictures of some phones, is used all the same.
  const picture = h("img", { src: `/v1/files/${id}`, alt: "", onerror: () => picture.replaceWith(h("span", {}, "chosen; browsers cannot show it")) });
  return picture;
}

// The id of a file on the server, and whether it is an image or a clip.
export function upload(file) {
  const form = new FormData();
  form.append("file", file);
  return call("POST", "/v1/files", form);
}

// `wanted` is the model to take where the form's own starts from words alone.
export async function bring(name, file, wanted = null) {
  try {
    const { id, kind } = await upload(file);
    if ((kind === "clip") !== (name === "extend")) throw new Error(name === "extend" ? "this is an image; a clip can be extended" : "this is a clip; an image goes here");
    await withImages(wanted, () => put(name, id));
  } catch (error) {
    say(error.message, true);
  }
}

export function drawLoras() {
  const place = document.getElementById("loras");
  if (!place) return;
  const now = draft.request.loras ?? [];
  const change = (list) => { putField("loras", list.length ? list : undefined); drawLoras(); };
  const rows = now.map((lora, index) => {
    const weight = h("input", { type: "number", step: 0.05, min: -10, max: 10, value: lora.weight ?? 1, ariaLabel: `Weight of ${lora.path}`,
      onchange: () => change(now.map((one, i) => (i === index ? { ...one, weight: Number(weight.value) } : one))) });
    return h("li", {}, h("span", {}, lora.path), weight, button("Remove", () => change(now.filter((_, i) => i !== index)), { ariaLabel: `Remove ${lora.path}` }));
  });
  const names = adapters.map((adapter) => adapter.id).filter((id) => !now.some((lora) => lora.path === id));
  const add = h("select", { id: "add-lora", onchange: () => add.value && change([...now, { path: add.value, weight: 1 }]) },
    h("option", { value: "" }, names.length ? "add one ..." : "none here: Models takes files"), ...names.map((name) => h("option", { value: name }, name)));
  place.replaceChildren(now.length ? h("ul", { className: "loras" }, ...rows) : "", h("div", { className: "field" }, h("label", { htmlFor: "add-lora" }, "Adapters (LoRA)"), add));
}

export async function loadAdapters() {
  adapters = await call("GET", "/v1/adapters");
  drawLoras();
}

// A video dropped anywhere but on a zone: its settings; a list: what it would make.
export function takeDrops() {
  const wanted = (event) => event.dataTransfer?.types?.includes("Files") && !event.target.closest?.(".zone, .drop");
  document.addEventListener("dragover", (event) => wanted(event) && event.preventDefault());
  document.addEventListener("drop", async (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (/\.(txt|csv|jsonl|ya?ml)$/i.test(file?.name ?? "")) await addMany(file);
    else if (/^image\/|\.(heic|heif|avif)$/i.test(file?.type || file?.name || "")) { openPlace("create"); await bring("image", file); }
    else if (file) await loadSettings(file);
  });
}

export async function loadSettings(file) {
  const form = new FormData();
  form.append("file", file);
  try {
    const { request, notes } = await call("POST", "/v1/settings", form);
    fill(request);
    openPlace("create");
    say(notes.length ? `Settings loaded; ${notes.join("; ")}.` : "Settings loaded.");
  } catch (error) {
    say(error.message, true);
  }
}
