// Two clips one over the other, with a slider between them, playing in step.
import { call, content, dialog, h } from "./dom.js";

export function compare(a, b, indexA = 0, indexB = 0) {
  const make = (video, index) => h("video", { src: content(video, "playable", index), muted: true, loop: true, playsInline: true, preload: "auto" });
  const under = make(a, indexA);
  const over = make(b, indexB);
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "Where one clip ends and the other begins", className: "wipe" });
  const stage = h("div", { className: "compare" }, under, over, h("span", { className: "edge" }));
  const cut = () => stage.style.setProperty("--cut", `${slider.value}%`);
  slider.addEventListener("input", cut);
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons && event.pointerType === "mouse") return;
    const box = stage.getBoundingClientRect();
    slider.value = Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width));
    cut();
  });
  cut();
  const step = () => { if (Math.abs(over.currentTime - under.currentTime) > 0.06) over.currentTime = under.currentTime; };
  under.addEventListener("timeupdate", step);
  for (const what of ["play", "pause"]) under.addEventListener(what, () => over[what]());
  const measures = h("p", { className: "measures" }, "measuring ...");
  const play = h("button", { type: "button", onclick: () => (under.paused ? under.play() : under.pause()) }, "Play or pause");
  dialog("Compare", stage, slider,
    h("div", { className: "names" }, h("p", {}, h("b", {}, "Left: "), label(a)), h("p", {}, h("b", {}, "Right: "), label(b))),
    measures, h("div", { className: "actions" }, play));
  under.play().catch(() => {});
  call("GET", `/v1/compare?a=${a.id}&b=${b.id}&index_a=${indexA}&index_b=${indexB}`)
    .then(({ psnr, ssim, note }) => { measures.textContent = `PSNR ${psnr.toFixed(1)} dB, SSIM ${ssim.toFixed(3)}${note ? ` (${note})` : ""}`; })
    .catch((error) => { measures.textContent = error.message; });
}

function label(video) {
  const { request } = video;
  const loras = request.loras.map((lora) => `${lora.path} ${lora.weight}`).join(", ");
  return `${request.attention}, seed ${request.seed}, ${video.num_frames} frames${loras ? `, ${loras}` : ""}: ${video.prompt.slice(0, 120)}`;
}
