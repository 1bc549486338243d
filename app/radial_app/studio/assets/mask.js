// A mask drawn on a frame of a clip and followed through it, looked at before it is used.
import { button, call, dialog, h, say } from "./dom.js";
import { number } from "./fields.js";
import { upload } from "./inputs.js";

const at = (id) => {
  const match = /^video:([0-9a-f]+)\/?(\d*)$/.exec(id);
  return match ? `/v1/videos/${match[1]}/content?variant=playable&index=${match[2] || 0}` : `/v1/files/${id}`;
};

// `take` is given the id of the mask.
export function drawMask(clip, take) {
  const player = h("video", { src: at(clip), muted: true, playsInline: true, preload: "auto" });
  const board = h("canvas", { className: "drawn", ariaLabel: "Draw over what is to be made anew", tabIndex: 0 });
  const easel = h("div", { className: "easel" }, player, board);
  const time = h("input", { type: "range", min: 0, max: 0, step: 0.01, value: 0, ariaLabel: "Frame to draw on", id: "mask-time" });
  const brush = h("input", { type: "range", min: 1, max: 20, step: 1, value: 6, id: "mask-brush" });
  const erase = h("input", { type: "checkbox", id: "mask-erase" });
  const grow = number("mask-grow", "Widen by pixels", { type: "integer", minimum: 0, maximum: 200, placeholder: "4" });
  const told = h("p", { className: "quiet", role: "status" }, "Draw over what is to be made anew, on a frame that shows it well.");
  const result = h("div", { className: "stack" });
  const pen = board.getContext("2d");
  let last = null, touched = false;

  player.addEventListener("loadedmetadata", () => { [board.width, board.height] = [player.videoWidth, player.videoHeight]; easel.style.aspectRatio = `${player.videoWidth} / ${player.videoHeight}`; easel.style.width = `min(100%, calc(55dvh * ${player.videoWidth / player.videoHeight}))`; time.max = Math.max(0, player.duration - 0.02); });
  player.addEventListener("error", () => { told.textContent = "This clip cannot be played here, so nothing can be drawn on it: bring a mask as a file."; });
  time.addEventListener("input", () => { player.currentTime = Number(time.value); clear(); });
  const clear = () => { pen.clearRect(0, 0, board.width, board.height); touched = false; result.replaceChildren(); };
  const where = (event) => { const box = board.getBoundingClientRect(); return [(event.clientX - box.left) * board.width / box.width, (event.clientY - box.top) * board.height / box.height]; };
  const stroke = (from, to) => {
    pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
    Object.assign(pen, { lineWidth: Number(brush.value) / 100 * Math.min(board.width, board.height) * 2, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(...to);
    pen.stroke();
    touched ||= !erase.checked;
  };
  board.addEventListener("pointerdown", (event) => { event.preventDefault(); board.setPointerCapture(event.pointerId); last = where(event); stroke(last, last); });
  board.addEventListener("pointermove", (event) => { if (last) stroke(last, (last = where(event))); });
  for (const name of ["pointerup", "pointercancel"]) board.addEventListener(name, () => { last = null; });

  const follow = button("Follow it through the clip", async () => {
    if (!touched) return say("Nothing is drawn yet.", true);
    follow.disabled = true;
    told.textContent = "It is followed through the clip ...";
    try {
      const { mask, preview } = await call("POST", "/v1/masks", { clip, drawn: (await upload(await onBlack(board))).id, at: player.currentTime, ...(grow.get() === undefined ? {} : { grow: grow.get() }) });
      told.textContent = "Red is made anew. Draw more, or on another frame, and follow it again, or use it.";
      result.replaceChildren(button("Use this mask", () => { take(mask.id); box.close(); }, { className: "primary" }),
        h("video", { src: `/v1/files/${preview.id}`, controls: true, loop: true, muted: true, autoplay: true, playsInline: true, id: "mask-preview", ariaLabel: "The clip, red where it is made anew" }));
      result.scrollIntoView({ block: "nearest" });
    } catch (error) {
      told.textContent = error.message;
    } finally {
      follow.disabled = false;
    }
  }, { className: "primary" });

  const box = dialog("Draw a mask", easel,
    h("div", { className: "fields" }, h("div", { className: "field" }, h("label", { htmlFor: "mask-time" }, "Frame"), time), h("div", { className: "field" }, h("label", { htmlFor: "mask-brush" }, "Brush"), brush), grow.element),
    h("div", { className: "check" }, erase, h("label", { htmlFor: "mask-erase" }, "Rub out")), h("div", { className: "actions" }, follow, button("Start over", clear)), told, result);
}

// What is drawn, white on black.
async function onBlack(board) {
  const whole = h("canvas", { width: board.width, height: board.height });
  const pen = whole.getContext("2d");
  pen.fillRect(0, 0, whole.width, whole.height);
  pen.drawImage(board, 0, 0);
  const blob = await new Promise((ready) => whole.toBlob(ready, "image/png"));
  return new File([blob], "drawn.png", { type: "image/png" });
}
