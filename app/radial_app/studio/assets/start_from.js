// From a clip to the next one: its last frame, or any frame of it, is where the next begins.
import { bring } from "./inputs.js";
import { fill, modelNow, modelsThat } from "./form.js";
import { button, dialog, h, say } from "./dom.js";
import { openPlace } from "./router.js";

export const canExtend = (video) => modelsThat((one) => one.id === video.model && one.starts_from.includes("image")).length > 0;

export function extend(video, index = 0) {
  fill({ ...video.request, image: null, last_image: null, extend: `video:${video.id}/${index}`, seed: null, num_videos: null });
  openPlace("create");
  say("The clip goes on from its last frame; say what happens next.");
}

// The frame that a player shows, as a file.
export async function frameOf(player) {
  const canvas = h("canvas", { width: player.videoWidth || player.naturalWidth, height: player.videoHeight || player.naturalHeight });
  canvas.getContext("2d").drawImage(player, 0, 0);
  const blob = await new Promise((ready) => canvas.toBlob(ready, "image/png"));
  return new File([blob], "frame.png", { type: "image/png" });
}

export async function startFrom(player) {
  const file = await frameOf(player);
  if (modelNow().starts_from.includes("image")) return begin(file);
  const models = modelsThat((one) => one.starts_from.includes("image"));
  const choice = h("select", { ariaLabel: "Model" }, ...models.map((one) => h("option", { value: one.id }, `${one.id}${one.on_disk || one.own ? "" : ", to download"}`)));
  const box = dialog("A model that starts from an image", h("p", {}, `${modelNow().id} starts from words alone.`), choice,
    h("div", { className: "actions" }, button("Take it", async () => { fill({ prompt: "", model: choice.value }); await begin(file); box.close(); }, { className: "primary" })));
}

async function begin(file) {
  openPlace("create");
  await bring("image", file);
}
