// What a clip starts from and ends on, adapters with their weights, and settings out of a video.
import { button, call, h, hidden, say } from "./dom.js";

const ZONES = { image: ["Start image", "image/*"], last_image: ["End image", "image/*"], extend: ["Clip to extend", "video/*"] };
const references = hidden("references-value");
const loras = hidden("loras-value");
let adapters = [];

const parsed = (text, empty) => { try { return JSON.parse(text) ?? empty; } catch { return empty; } };

export function fillReferences() {
  const place = document.getElementById("references");
  if (!place) return;
  const now = parsed(references.get(), {});
  const key = JSON.stringify(now);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.replaceChildren(...Object.entries(ZONES).map(([name, [label, accept]]) => zone(name, label, accept, now[name])));
}

function change(name, id) {
  const now = parsed(references.get(), {});
  if (id) now[name] = id;
  else delete now[name];
  if (id && name === "extend") { delete now.image; }
  if (id && name === "image") { delete now.extend; }
  references.set(JSON.stringify(now));
  fillReferences();
}

function zone(name, label, accept, id) {
  const file = h("input", { type: "file", accept, hidden: true, onchange: () => file.files[0] && bring(name, file.files[0]) });
  const picture = id ? h("span", { className: "picked" }, look(id), h("span", {}, id.startsWith("video:") ? "a clip of the gallery" : "chosen")) : h("span", {}, label);
  const box = h("button", { type: "button", className: `zone${id ? " full" : ""}`, dataset: { zone: name }, ariaLabel: label, onclick: () => file.click(),
    ondragover: (event) => { event.preventDefault(); box.classList.add("over"); },
    ondragleave: () => box.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); box.classList.remove("over"); if (event.dataTransfer.files[0]) bring(name, event.dataTransfer.files[0]); } }, picture);
  return h("div", { className: "zone-box" }, box, file, id ? button("Remove", () => change(name, null), { ariaLabel: `Remove ${label.toLowerCase()}` }) : "");
}

function look(id) {
  const match = /^video:([0-9a-f]+)\/?(\d*)$/.exec(id);
  if (match) return h("img", { src: `/v1/videos/${match[1]}/content?variant=thumbnail&index=${match[2] || 0}`, alt: "" });
  return /\.(mp4|webm)$/.test(id) ? h("video", { src: `/v1/files/${id}`, muted: true, preload: "metadata" }) : h("img", { src: `/v1/files/${id}`, alt: "" });
}

async function bring(name, file) {
  const form = new FormData();
  form.append("file", file);
  try {
    const { id, kind } = await call("POST", "/v1/files", form);
    if ((kind === "clip") !== (name === "extend")) throw new Error(name === "extend" ? "this is an image; a clip can be extended" : "this is a clip; an image goes here");
    change(name, id);
  } catch (error) {
    say(error.message, true);
  }
}

export async function fillLoras() {
  const place = document.getElementById("loras");
  if (!place) return;
  const now = parsed(loras.get(), []);
  const key = JSON.stringify([now, adapters]);
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  const rows = now.map((lora, index) => {
    const weight = h("input", { type: "number", step: 0.05, min: -10, max: 10, value: lora.weight, ariaLabel: "Weight",
      onchange: () => put(now.map((one, i) => (i === index ? { ...one, weight: Number(weight.value) } : one))) });
    return h("li", {}, h("span", {}, lora.path), weight, button("Remove", () => put(now.filter((_, i) => i !== index))));
  });
  const names = adapters.map((adapter) => adapter.id).filter((id) => !now.some((lora) => lora.path === id));
  const add = h("select", { ariaLabel: "Add an adapter", onchange: () => add.value && put([...now, { path: add.value, weight: 1 }]) },
    h("option", { value: "" }, names.length || now.length ? "Add an adapter (LoRA) ..." : "No adapters yet: Models takes them"),
    ...names.map((name) => h("option", { value: name }, name)));
  place.replaceChildren(h("ul", {}, ...rows), add);
}

function put(list) {
  loras.set(JSON.stringify(list));
  fillLoras();
}

export async function loadAdapters() {
  const bundled = [{ id: "bundled:tiny-long" }];
  adapters = [...bundled, ...(await call("GET", "/v1/adapters"))];
  fillLoras();
}

// A video dropped anywhere but on a zone: its settings.
export function takeDrops() {
  const wanted = (event) => event.dataTransfer?.types?.includes("Files") && !event.target.closest?.(".zone, .drop");
  document.addEventListener("dragover", (event) => wanted(event) && event.preventDefault());
  document.addEventListener("drop", async (event) => {
    if (!wanted(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) await loadSettings(file);
  });
}

export async function loadSettings(file) {
  const form = new FormData();
  form.append("file", file);
  try {
    const { request, notes } = await call("POST", "/v1/settings", form);
    window.radial.use(request);
    say(notes.length ? `Settings loaded; ${notes.join("; ")}.` : "Settings loaded.");
  } catch (error) {
    say(error.message, true);
  }
}
