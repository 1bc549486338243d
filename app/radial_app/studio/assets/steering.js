// What steers a clip beside its words: another clip, a mask on it, images of what appears, and images at frames.
import { button, h, say } from "./dom.js";
import { draft } from "./draft.js";
import { put } from "./form.js";
import { upload, zone } from "./inputs.js";
import { drawMask } from "./mask.js";

const CLIP = "video/*";
const IMAGE = "image/*,.heic,.avif";
let spec = null;

export function drawSteering(now) {
  spec = now;
  const place = document.getElementById("steering");
  const able = (name) => spec.steered_by.includes(name);
  place.hidden = !spec.steered_by.length;
  if (place.hidden) return;
  const { control_video, background_video, references = [], keyframes = [] } = draft.request;
  const zones = [];
  const one = (name, label, accept, kinds) => zones.push(zone(name, label, accept, draft.request[name], { quiet: "drop or choose", take: (file) => bring(file, kinds, (id) => set(name, id)), remove: () => set(name, null) }));
  if (able("control_video") || able("strength")) one("control_video", able("control_video") ? "Control video" : "Clip to make over", CLIP, ["clip"]);
  if (able("face_video")) one("face_video", "Face that it follows", CLIP, ["clip"]);
  if (able("background_video")) one("background_video", "Clip to take the place in", CLIP, ["clip"]);
  const masked = able("mask") && (able("background_video") ? background_video : control_video);
  if (masked) {
    one("mask", "Mask: white is made anew", `${IMAGE},${CLIP}`, ["image", "clip"]);
    zones.at(-1).append(button("Draw a mask", () => drawMask(masked, (id) => set("mask", id))));
  }
  const list = (name, label, ones, id, make, most) => [...ones, null].slice(0, most).forEach((item, index) => zones.push(h("div", { className: "zone-box" },
    zone(`${name}.${index}`, label, IMAGE, item && id(item), { quiet: "drop or choose", take: (file) => bring(file, ["image"], (brought) => set(name, [...ones.slice(0, index), make(brought, item, index), ...ones.slice(index + 1)])), remove: () => set(name, ones.filter((other) => other !== item)) }),
    name === "keyframes" && item ? frameOf(item, index, ones) : "")));
  if (able("references")) list("references", "Reference: who or what appears", references, (item) => item, (brought) => brought, spec.most_references);
  if (able("keyframes")) list("keyframes", "Image at a frame", keyframes, (item) => item.image, (brought, item) => ({ frame: item?.frame ?? -1, image: brought }), 64);
  document.getElementById("steering-zones").replaceChildren(...zones);
}

function frameOf(item, index, ones) {
  const field = h("input", { type: "number", step: 1, min: -4097, max: 4096, value: item.frame, ariaLabel: "Frame of this image, from 0, or back from -1", title: "Frame, from 0, or back from -1",
    onchange: () => set("keyframes", ones.map((other, place) => (place === index ? { ...other, frame: Math.round(Number(field.value)) || 0 } : other))) });
  return field;
}

function set(name, value) {
  const goes = { control_video: ["strength", ...(spec.steered_by.includes("background_video") ? [] : ["mask"])], background_video: ["mask"] };
  if (!value) for (const other of goes[name] ?? []) put(other, null);
  put(name, Array.isArray(value) && !value.length ? null : value);
  // A model that makes clips over and is steered by none needs to hear how far.
  if (name === "control_video" && value && !spec.steered_by.includes("control_video") && !draft.request.strength) put("strength", 0.6);
  dispatchEvent(new CustomEvent("radial-steered"));
  drawSteering(spec);
}

async function bring(file, kinds, take) {
  try {
    const { id, kind } = await upload(file);
    if (!kinds.includes(kind)) throw new Error(kind === "clip" ? "this is a clip; an image goes here" : "this is an image; a clip goes here");
    take(id);
  } catch (error) {
    say(error.message, true);
  }
}
