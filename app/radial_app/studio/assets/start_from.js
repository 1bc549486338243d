// From a clip to the next one: its last frame, any frame of it, or the same in full.
import { bring } from "./inputs.js";
import { chooseModel, fill, formReady, modelNow, modelsThat } from "./form.js";
import { button, call, dialog, h, say } from "./dom.js";
import { draft, rememberFull, stepsInFull, withoutFiles } from "./draft.js";
import { openPlace } from "./router.js";

const takesImages = (one) => one.starts_from.includes("image");
const isHere = (one) => Boolean(one.on_disk || one.own);

// A model that starts from images: the one asked for, the form's, one on this machine, or one to download, which is
// asked first; null where none is wanted.
async function findImageModel(wanted) {
  await formReady;
  const able = modelsThat(takesImages).sort((a, b) => (b.id === wanted) - (a.id === wanted) || (b === modelNow()) - (a === modelNow()) || isHere(b) - isHere(a));
  if (!able.length) throw new Error("no model here starts from an image");
  if (able[0].id === wanted || able[0] === modelNow() || isHere(able[0])) return able[0].id;
  const choice = h("select", { ariaLabel: "Model" }, ...able.map((one) => h("option", { value: one.id }, `${one.id}, to download`)));
  return new Promise((chosen) => {
    const box = dialog("A model that starts from an image", h("p", {}, `${wanted ?? modelNow().id} starts from words alone, and no model on this machine starts from an image.`), choice,
      h("div", { className: "actions" }, button("Take it", () => { chosen(choice.value); box.close(); }, { className: "primary" })));
    box.addEventListener("close", () => chosen(null));
  });
}

// Calls `act` once the form's model starts from images. Another model is taken where it must be; words stay.
export async function withImages(wanted, act) {
  await formReady;
  if (takesImages(modelNow())) return act();
  const [before, request] = [modelNow().id, structuredClone(draft.request)];
  const id = await findImageModel(wanted);
  if (!id) return;
  chooseModel(id);
  await act();
  say(`${before} starts from words alone, so this is for ${id} now.`, false, ["Undo", () => fill(request)]);
}

export async function extend(video, index = 0) {
  const model = await findImageModel(video.model);
  if (!model) return;
  const whole = model === video.model ? { ...withoutFiles(video.request), seed: null, num_videos: null } : { prompt: video.prompt, model };
  fill({ ...whole, extend: `video:${video.id}/${index}` });
  openPlace("create");
  say(`The clip goes on from its last frame${model === video.model ? "" : `, with ${model}`}; say what happens next.`);
}

// The frame that a player shows, as a file; a clip that has not come yet is waited for.
export async function frameOf(player) {
  if (player.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) await new Promise((ready, fail) => {
    const refuse = () => fail(new Error("This clip cannot be played here, so no frame of it can be taken."));
    player.addEventListener("loadeddata", ready, { once: true });
    player.addEventListener("error", refuse, { once: true });
    if (player.error) refuse();
  });
  const canvas = h("canvas", { width: player.videoWidth || player.naturalWidth, height: player.videoHeight || player.naturalHeight });
  canvas.getContext("2d").drawImage(player, 0, 0);
  const blob = await new Promise((ready) => canvas.toBlob(ready, "image/png"));
  return new File([blob], "frame.png", { type: "image/png" });
}

export async function startFrom(player, video) {
  const file = await frameOf(player);
  openPlace("create");
  await bring("image", file, video.model);
}

// Fewer steps than the model's own, and not because an adapter for few steps was used.
export const isDraft = ({ id, model, files, request, story, renders }) => !story && renders > 0 && files.length > 0 && (stepsInFull(id) !== null
  || modelsThat((one) => one.id === model && one.num_inference_steps > request.num_inference_steps).length > 0 && !(request.num_inference_steps <= 8 && request.guidance_scale === 1));

export async function promote(video, index = 0) {
  await formReady;
  const [spec] = modelsThat((one) => one.id === video.model);
  const changes = { num_inference_steps: stepsInFull(video.id) ?? spec.num_inference_steps, dense_steps: null, seed: video.files[index].seed, num_videos: 1 };
  await call("POST", `/v1/videos/${video.id}/duplicate`, changes);
  say(`Seed ${changes.seed} is queued in full, ${changes.num_inference_steps} steps.`);
}

export async function variations(video) {
  const { request } = video;
  const steps = Math.max(4, Math.round(request.num_inference_steps / 3));
  const seed = Math.floor(Math.random() * 2 ** 31);
  const made = await call("POST", `/v1/videos/${video.id}/duplicate`, { seed, num_videos: 4, num_inference_steps: steps, dense_steps: Math.min(request.dense_steps ?? 0, steps) });
  rememberFull(made.id, request.num_inference_steps);
  say("Four quick variations are queued. Make it in full, beside the one you like, does what it says.");
}
