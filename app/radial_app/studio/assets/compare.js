// Two clips one over the other, with a slider between them, under one scrubber.
import { button, call, content, dialog, h, icon } from "./dom.js";

export function compare(a, b, indexA = 0, indexB = 0) {
  const make = (video, index) => h("video", { src: content(video, "playable", index), muted: true, loop: true, playsInline: true, preload: "auto" });
  const [under, over] = [make(a, indexA), make(b, indexB)];
  const slider = h("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: "Where one clip ends and the other begins", className: "wipe" });
  const scrubber = h("input", { type: "range", min: 0, max: 1000, value: 0, step: 1, ariaLabel: "Time", className: "time", oninput: () => { under.pause(); to((scrubber.value / 1000) * under.duration); } });
  const stage = h("div", { className: "compare" }, under, over, h("span", { className: "edge" }));
  const cut = () => stage.style.setProperty("--cut", `${slider.value}%`);
  const to = (seconds) => { for (const one of [under, over]) one.currentTime = Math.max(0, Math.min(one.duration || 0, seconds)); };
  const frame = (by) => { under.pause(); to(under.currentTime + by / a.fps); };
  slider.addEventListener("input", cut);
  stage.addEventListener("pointermove", (event) => {
    if (!event.buttons && event.pointerType === "mouse") return;
    const box = stage.getBoundingClientRect();
    slider.value = Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width));
    cut();
  });
  cut();
  under.addEventListener("timeupdate", () => {
    scrubber.value = (1000 * under.currentTime) / (under.duration || 1);
    if (Math.abs(over.currentTime - under.currentTime) > 0.06) over.currentTime = under.currentTime;
  });
  for (const what of ["play", "pause"]) under.addEventListener(what, () => over[what]());
  const measures = h("p", { className: "measures" }, "measuring ...");
  dialog("Compare", stage, h("div", { className: "field" }, h("span", { className: "label" }, "Left and right"), slider), h("div", { className: "beside" },
    button([icon("play"), "Play or pause"], () => (under.paused ? under.play() : under.pause())), button("◂ frame", () => frame(-1), { ariaLabel: "One frame back" }), button("frame ▸", () => frame(1), { ariaLabel: "One frame on" }), scrubber),
  h("div", { className: "names" }, h("p", {}, h("b", {}, "Left: "), label(a)), h("p", {}, h("b", {}, "Right: "), label(b))), measures);
  under.play().catch(() => {});
  call("GET", `/v1/compare?a=${a.id}&b=${b.id}&index_a=${indexA}&index_b=${indexB}`)
    .then(({ psnr, ssim, note }) => { measures.textContent = `PSNR ${psnr.toFixed(1)} dB, SSIM ${ssim.toFixed(3)}${note ? ` (${note})` : ""}`; })
    .catch((error) => { measures.textContent = error.message; });
}

export async function chooseOther(video, index, tile) {
  const { data } = await call("GET", "/v1/videos?show=done&limit=60");
  const others = data.filter((other) => other.id !== video.id && other.files.length);
  const box = dialog("Compare with", others.length ? h("div", { className: "tiles" }, ...others.map((other) => {
    const one = tile(other);
    one.addEventListener("click", (event) => { event.preventDefault(); event.stopPropagation(); box.close(); compare(video, other, index); }, true);
    return one;
  })) : h("p", { className: "quiet" }, "There is no other video yet."));
}

function label(video) {
  const { request } = video;
  const loras = request.loras.map((lora) => `${lora.path} ${lora.weight}`).join(", ");
  return `${request.attention}, seed ${request.seed}, ${video.num_frames} frames${loras ? `, ${loras}` : ""}: ${video.prompt.slice(0, 120)}`;
}
