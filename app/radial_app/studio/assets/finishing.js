// A clip finished: more frames, more pixels, another time or shape, as a file of its own beside the clip.
import { h } from "./dom.js";

const CHOICES = {
  frames: ["Frames", [["1", "as they are"], ["2", "twice as many"], ["4", "four times as many"]]],
  scale: ["Pixels", [["1", "as they are"], ["2", "twice as wide and high"], ["4", "four times"]]],
  speed: ["Speed", [["1", "as it is"], ["0.5", "half"], ["2", "twice"]]],
  aspect: ["Shape", [["", "as it is"], ["16:9", "16:9"], ["9:16", "9:16"], ["1:1", "1:1"], ["4:5", "4:5"]]],
  loop: ["Shown", [["1", "once"], ["2", "twice"], ["4", "four times"]]],
};

export function finisher(video, index) {
  const link = h("a", { className: "button", download: "" }, "Download it finished");
  const told = h("span", { className: "quiet", role: "status" });
  const controls = Object.entries(CHOICES).map(([name, [label, options]]) => {
    const select = h("select", { name, id: `finish-${name}`, onchange: show }, ...options.map(([value, words]) => h("option", { value }, words)));
    return [select, h("div", { className: "field" }, h("label", { htmlFor: select.id }, label), select)];
  });
  const reverse = h("input", { type: "checkbox", id: "finish-reverse", name: "reverse", onchange: show });
  function show() {
    const asked = controls.map(([select]) => select).filter((select) => select.value !== select.options[0].value).map((select) => `${select.name}=${encodeURIComponent(select.value)}`);
    if (reverse.checked) asked.push("reverse=true");
    told.textContent = asked.length ? "A file of its own: the clip stays as it is." : "Choose what is to be done.";
    if (asked.length) link.href = `/v1/videos/${video.id}/finished?index=${index()}&${asked.join("&")}`;
    else link.removeAttribute("href");
  }
  link.addEventListener("click", show); // another of its videos may be shown by now
  show();
  return h("div", { className: "stack" }, h("div", { className: "fields" }, ...controls.map(([, element]) => element)), h("div", { className: "check" }, reverse, h("label", { htmlFor: reverse.id }, "From its end to its beginning")), h("div", { className: "actions" }, link, told));
}
