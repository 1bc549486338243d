// A clip finished: more frames, more pixels, another time or shape, as a file of its own beside the clip; at once, or as
// a job of the queue, which takes more of it.
import { button, call, h, say } from "./dom.js";

const CHOICES = {
  frames: ["Frames", [["1", "as they are"], ["2", "twice as many"], ["4", "four times as many"]]],
  scale: ["Pixels", [["1", "as they are"], ["2", "twice as wide and high"], ["4", "four times"]]],
  speed: ["Speed", [["1", "as it is"], ["0.5", "half"], ["2", "twice"]]],
  aspect: ["Shape", [["", "as it is"], ["16:9", "16:9"], ["9:16", "9:16"], ["1:1", "1:1"], ["4:5", "4:5"]]],
  loop: ["Shown", [["1", "once"], ["2", "twice"], ["4", "four times"]]],
  sound: ["Sound", [["keep", "its own"], ["none", "none"]]],
};
const NUMBERS = ["frames", "scale", "speed", "loop"];

// The choices as fields: `get` is what of them is asked for, by name.
export function finishFields(wanted, change, place = "finish") {
  const lists = Object.fromEntries(wanted.map((name) => {
    const [label, options] = CHOICES[name];
    return [name, h("select", { name, id: `${place}-${name}`, ariaLabel: label, onchange: change }, ...options.map(([value, words]) => h("option", { value }, words)))];
  }));
  const model = h("select", { name: "upscaler", id: `${place}-upscaler`, onchange: change }, h("option", { value: "" }, "Lanczos"));
  const byModel = h("div", { className: "field", hidden: true }, h("label", { htmlFor: model.id }, "Pixels by"), model);
  call("GET", "/v1/upscalers").then((names) => {
    byModel.hidden = !names.length;
    model.append(...names.map((name) => h("option", { value: name }, name.replace(/\.safetensors$/, ""))));
    if (kept.upscaler) model.value = kept.upscaler;
  }).catch(() => {}); // it is a choice less
  const kept = {};
  const elements = wanted.map((name) => h("div", { className: "field" }, h("label", { htmlFor: lists[name].id }, CHOICES[name][0]), lists[name]));
  return {
    elements: [...elements, byModel],
    get: () => ({ ...Object.fromEntries(Object.entries(lists).filter(([, list]) => list.selectedIndex > 0).map(([name, { value }]) => [name, NUMBERS.includes(name) ? Number(value) : value])), ...(model.value ? { upscaler: model.value } : {}) }),
    set: (values) => {
      Object.assign(kept, { upscaler: undefined }, values);
      for (const [name, list] of Object.entries(lists)) { list.value = String(values[name] ?? ""); if (list.selectedIndex < 0) list.selectedIndex = 0; }
      model.value = values.upscaler ?? "";
      if (model.selectedIndex < 0) model.selectedIndex = 0;
    },
  };
}

export function finisher(video, index, done) {
  const link = h("a", { className: "button", download: "" }, "Download it finished");
  const told = h("span", { className: "quiet", role: "status" });
  const fields = finishFields(Object.keys(CHOICES), show);
  const reverse = h("input", { type: "checkbox", id: "finish-reverse", name: "reverse", onchange: show });
  const asked = () => ({ ...fields.get(), ...(reverse.checked ? { reverse: true } : {}) });
  const queue = button("Put it into the queue", async () => {
    await call("POST", `/v1/videos/${video.id}/finish`, { ...asked(), index: index() });
    say("Queued: it comes into the gallery beside this one.");
    done();
  });
  function show() {
    const wanted = asked();
    const some = Object.keys(wanted).length > 0;
    const here = some && !("upscaler" in wanted) && !("sound" in wanted); // files and sounds are for the queue
    told.textContent = !some ? "Choose what is to be done." : here ? "A file of its own: the clip stays as it is." : "A job of the queue: the clip stays as it is.";
    queue.disabled = !some;
    if (here) link.href = `/v1/videos/${video.id}/finished?index=${index()}&${new URLSearchParams(wanted)}`;
    else link.removeAttribute("href");
  }
  link.addEventListener("click", show); // another of its videos may be shown by now
  show();
  return h("div", { className: "stack" }, h("div", { className: "fields" }, ...fields.elements), h("div", { className: "check" }, reverse, h("label", { htmlFor: reverse.id }, "From its end to its beginning")), h("div", { className: "actions" }, queue, link, told));
}
