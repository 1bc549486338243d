// Tune: datasets and fine-tuning runs. Built when the page is first seen, then kept up to date every two seconds.
import { ask, button, bytes, call, clock, h, lengthOf, many, say } from "./dom.js";
import { choice, number, switches, text } from "./fields.js";
import { fill } from "./form.js";
import { loadAdapters } from "./inputs.js";
import { openPlace } from "./router.js";

const WORDS = { preparing: "encoding clips", prepared: "ready to train", training: "training", stopping: "stopping after its step",
  stopped: "stopped", failed: "failed", done: "done" };
const BUSY = ["preparing", "training", "stopping"];
let models = [];
let datasets = [];
let looked = 0;
const cards = new Map();

let waiting = null;

// Looks again every two seconds as long as a run is at work and somebody sees it.
export function showTune() {
  const place = document.getElementById("tune");
  if (place.hidden || Date.now() - looked < 1900) return;
  looked = Date.now();
  clearTimeout(waiting);
  look(place).then((busy) => { if (busy) waiting = setTimeout(showTune, 2000); }, (error) => (cards.size ? say(error.message, true) : refuse(place, error)));
}

function refuse(place, error) {
  place.replaceChildren(h("h1", {}, "Tune"), h("div", { className: "empty" }, h("p", {}, error.message)));
}

async function look(place) {
  if (!place.querySelector("#tune-runs")) {
    await loadChoices();
    place.replaceChildren(h("div", { className: "head" }, h("h1", {}, "Tune"), button("New run", () => fillNew(true))),
      h("div", { id: "tune-new" }), h("div", { id: "tune-runs", className: "stack" }));
    cards.clear();
  }
  const runs = await call("GET", "/v1/tuning");
  const list = place.querySelector("#tune-runs");
  for (const [name, card] of cards) if (!runs.some((run) => run.name === name)) { card.element.remove(); cards.delete(name); }
  for (const run of runs) {
    if (!cards.has(run.name)) cards.set(run.name, { element: h("article", { className: "card tune-run" }), key: "" });
    update(cards.get(run.name), run);
  }
  const order = runs.map((run) => cards.get(run.name).element);
  if (order.some((element, i) => list.children[i] !== element)) list.replaceChildren(...order);
  if (!runs.length) fillNew(false);
  return runs.some((run) => BUSY.includes(run.state));
}

async function loadChoices() {
  const [{ data }, found] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/datasets")]);
  models = data;
  datasets = found;
}

const again = () => { looked = 0; showTune(); };

function fillNew(wanted) {
  const place = document.getElementById("tune-new");
  if (!place || place.childElementCount) { if (wanted) place?.replaceChildren(); return; }
  const blame = (one) => one.blame("");
  const dataset = choice("dataset", "Dataset", datasets.length ? datasets.map((one) => [one.name, `${one.name} (${many(one.clips, "clip")})`]) : [["", "none yet: bring one"]], { change: () => blame(dataset) });
  const model = choice("model", "Model", models.map((one) => [one.id, one.id]), { change: () => drawLengths() });
  const frames = text("frames", "Frames of the clips", { hint: "several lengths are mixed: 81, 161", change: () => judge() });
  const size = text("size", "Size", { hint: "the model's own when empty", maxLength: 11, change: () => judge() });
  const name = text("name", "Name of the run", { placeholder: "named after its dataset and model", maxLength: 64, change: () => blame(name) });
  Object.entries({ dataset, model, frames, size, name }).forEach(([id, one]) => { one.control.id = `tune-${id}`; one.element.querySelector("label").htmlFor = one.control.id; });
  const spec = () => models.find((one) => one.id === model.get());
  const counts = () => (frames.get() ?? "").split(/[\s,]+/).filter(Boolean).map(Number);
  const longer = (n) => lengthOf(spec(), spec().stride[0], n);
  const times = switches("Times the native length", [1, 2, 3, 4].map((n) => [n, `${n}x`]), (n) => {
    const now = counts();
    frames.set((now.includes(longer(n)) ? now.filter((one) => one !== longer(n)) : [...now, longer(n)]).sort((a, b) => a - b).join(", "));
    judge();
  });
  // What cannot be is told beside its field, before anything is sent.
  const judge = () => {
    const [stride] = spec().stride;
    const first = spec().first_frame;
    const bad = counts().find((count) => !Number.isInteger(count) || count < 1 || (count - first) % stride);
    const below = Math.max(0, Math.floor((bad - first) / stride)) * stride + first;
    frames.blame(!counts().length ? "say lengths in frames, such as 81, 161" : bad === undefined ? "" : Number.isInteger(bad) ? `${model.get()} makes ${below} or ${below + stride} frames, not ${bad}` : "say lengths in frames, such as 81, 161");
    const [, width, height] = /^\s*(\d+)\s*x\s*(\d+)\s*$/.exec(size.get() ?? "") ?? [];
    size.blame(size.get() && !width ? "width x height, such as 832x480" : "");
    for (const [n, one] of [...times.element.children].entries()) one.setAttribute("aria-pressed", String(counts().includes(longer(n + 1))));
    return frames.control.getAttribute("aria-invalid") || size.control.getAttribute("aria-invalid") ? null : [width ? Number(width) : null, height ? Number(height) : null];
  };
  const drawLengths = () => { frames.set(String(longer(2))); size.control.placeholder = `${spec().width}x${spec().height}`; judge(); };
  drawLengths();
  const file = h("input", { type: "file", accept: ".zip", hidden: true, onchange: () => bring(file, place) });
  const prepare = button("Prepare its clips", async () => {
    const sides = judge();
    if (!sides) return frames.control.getAttribute("aria-invalid") ? frames.control.focus() : size.control.focus();
    if (!dataset.get()) return dataset.blame("choose a dataset, or bring one");
    const run = { name: name.get() || `${dataset.get()}-${model.get()}`.replace(/[^\w.-]/g, "-"), dataset: dataset.get(), model: model.get(), num_frames: counts(), width: sides[0], height: sides[1] };
    try {
      await call("POST", "/v1/tuning", run);
    } catch (error) {
      const one = { name, dataset, num_frames: frames, width: size, height: size }[error.param?.split(".")[0]];
      if (!one) throw error;
      return one.blame(error.message.replace(/ \(--[^)]*\)/g, ""));
    }
    place.replaceChildren();
    again();
  }, { className: "primary", id: "tune-prepare" });
  place.replaceChildren(h("section", { className: "card" }, h("h2", {}, "A new run"),
    h("p", { className: "quiet" }, "An adapter that is tuned on longer clips makes a model keep its subject for two to four times its native length. A dataset is a folder of clips, each with its caption in a .txt file of the same name: bring a zip file, or put the folder into datasets of the data folder."),
    h("div", { className: "fields wide" }, h("div", {}, dataset.element, h("div", { className: "actions" }, button("Bring a zip file", () => file.click()), file)), model.element,
      h("div", { className: "stack" }, frames.element, times.element), size.element, name.element),
    h("div", { className: "actions" }, prepare)));
}

async function bring(input, place) {
  const [file] = input.files;
  if (!file) return;
  const form = new FormData();
  form.append("file", file);
  form.append("name", file.name.replace(/\.zip$/i, "").replace(/[^\w.-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 64) || "clips");
  try {
    say("Unpacking the dataset ...");
    const found = await call("POST", "/v1/datasets", form);
    say(`Dataset ${found.name}: ${found.clips} clips, ${found.captions} with a caption beside them.`);
    datasets = await call("GET", "/v1/datasets");
    place.replaceChildren();
    fillNew(false);
    const chosen = document.getElementById("tune-dataset");
    if (chosen) chosen.value = found.name;
  } catch (error) {
    say(error.message, true);
  }
}

function update(card, run) {
  const key = JSON.stringify([run.state, run.pictures, run.adapter, run.problem]);
  if (key !== card.key) {
    card.key = key;
    const typed = Object.fromEntries([...card.element.querySelectorAll("[name]")].map((field) => [field.name, field.value]));
    card.element.replaceChildren(...draw(card, run));
    for (const field of card.element.querySelectorAll("[name]")) if (field.name in typed) field.value = typed[field.name];
  }
  const { bar, told, plot, samples } = card.parts;
  showSamples(card, samples, run);
  const preparing = run.state === "preparing";
  const [done, all] = preparing ? [run.prepared.done ?? 0, run.prepared.files ?? 0] : [run.step, run.steps];
  if (bar) { bar.max = all || 1; bar.value = done; }
  told.textContent = preparing ? `${done} of ${all} files` : run.steps
    ? `step ${done.toLocaleString()} of ${all.toLocaleString()}${run.loss === null ? "" : `, loss ${run.loss.toFixed(4)}`}${run.state === "training" && done >= all ? ", writing the adapter and its samples" : run.eta === null ? "" : `, ${clock(run.eta)} left`}` : "";
  const points = `${run.losses.length} ${run.step}`;
  if (run.losses.length > 1 && plot.dataset.points !== points) {
    plot.dataset.points = points;
    plot.replaceChildren(...drawPlot(run.losses, run.held_out));
  }
}

function draw(card, run) {
  const { preparation, training, prepared } = run;
  const at = `/v1/tuning/${encodeURIComponent(run.name)}`;
  const act = (label, path, properties) => button(label, async () => { await call("POST", `${at}/${path}`); again(); }, properties);
  const busy = BUSY.includes(run.state);
  card.parts = { bar: busy ? h("progress", { value: 0, max: 1, ariaLabel: WORDS[run.state] }) : null, told: h("span", { className: "eta" }), plot: h("figure", { className: "plot" }), samples: h("details", { open: true, hidden: true }) };
  const kept = prepared.kept === undefined ? "" : `${prepared.kept} clips of ${prepared.files} files`;
  const left = Object.entries(prepared.dropped ?? {}).map(([why, count]) => `${count} left out, ${why}`);
  const corrupt = prepared.corrupt?.length ? [`${prepared.corrupt.length} files cannot be read, such as ${prepared.corrupt[0]}`] : [];
  return [
    h("div", { className: "head" }, h("h2", {}, run.name), h("span", { className: `state ${run.state}` }, WORDS[run.state])),
    h("p", { className: "quiet" }, `${preparation.dataset}, ${preparation.model}, ${preparation.num_frames.join(", ")} frames${training ? `, rank ${training.rank}, rate ${training.learning_rate}` : ""}`),
    busy || run.steps ? h("div", { className: "bar" }, card.parts.bar ?? "", card.parts.told) : "",
    run.problem ? h("p", { className: "problem", role: "alert" }, run.problem) : "",
    run.state === "done" ? h("div", { className: "actions" }, button("Use in Create", () => use(run), { className: "primary" })) : "",
    card.parts.plot,
    card.parts.samples,
    kept ? h("details", { open: run.state === "prepared" }, h("summary", {}, `Dataset report: ${kept}`),
      h("ul", { className: "quiet" }, ...Object.entries(prepared.buckets ?? {}).map(([size, count]) => h("li", {}, `${count} of ${size}`)), ...[...left, ...corrupt].map((text) => h("li", {}, text))),
      h("div", { className: "pictures" }, ...run.pictures.map((picture) => h("a", { href: `${at}/files/${picture}`, target: "_blank" }, h("img", { src: `${at}/files/${picture}`, loading: "lazy", alt: picture === "sheet.png" ? "Frames of the first clips" : "Lengths and what was left out" }))))) : "",
    !busy && kept ? drawForm(run, at) : "",
    h("details", {}, h("summary", {}, "Log"), h("pre", {}, run.log.join("\n") || "nothing yet")),
    h("div", { className: "actions" },
      busy && run.state !== "stopping" ? act("Stop", "stop") : "",
      !busy && !kept ? button("Prepare again", async () => { await call("POST", "/v1/tuning", preparation); again(); }) : "",
      !busy ? button("Delete", async () => { if (await ask(`Delete run ${run.name}, its cache and checkpoints?`, "Delete")) { await call("DELETE", at); again(); } }, { className: "danger" }) : ""),
  ];
}

function drawForm(run, at) {
  const now = run.training ?? { steps: 1000, rank: 64, learning_rate: 1e-4, held_out: Math.min(8, Math.floor(run.prepared.kept / 8)), sample_every: 200, sample_prompts: [], trigger: "", more: "" };
  const whole = { type: "integer", maximum: 1e6 };
  const numbers = [number("steps", "Steps", { ...whole, minimum: 1 }), number("rank", "Rank", { ...whole, minimum: 1, maximum: 1024 }), number("learning_rate", "Learning rate", { minimum: 0, maximum: 1 }),
    number("held_out", "Clips held out", { ...whole, minimum: 0, hint: "their loss says whether it learns" }), number("sample_every", "Samples every", { ...whole, minimum: 0, hint: "steps; 0 for none" })];
  const words = [text("trigger", "Trigger word", { hint: "may stay empty" }), text("sample_prompts", "Prompts of the samples", { rows: 2, whole: true, placeholder: "one prompt a line" }),
    text("more", "Other settings, as in docs/finetune.md", { rows: 2, whole: true, placeholder: "offload_checkpoints = true" })];
  for (const one of [...numbers, ...words]) one.set(one.name === "sample_prompts" ? now.sample_prompts.join("\n") : now[one.name]);
  const [trigger, prompts, more] = words;
  const told = h("span", { className: "quiet", role: "status" });
  const written = () => {
    const training = { sample_prompts: (prompts.get() ?? "").split("\n").map((line) => line.trim()).filter(Boolean), trigger: trigger.get() ?? "", more: more.get() ?? "" };
    for (const one of numbers) training[one.name] = one.get();
    return training;
  };
  // Time and memory, asked for when the form is seen and once its user has stopped changing it.
  let later = null;
  const forecast = () => {
    clearTimeout(later);
    later = setTimeout(async () => {
      if (!told.isConnected || !told.offsetParent || numbers.some((one) => one.fault() || one.get() === undefined)) return;
      told.textContent = "working out how long it takes ...";
      try {
        const { steps, seconds, device, disk } = await call("POST", `${at}/estimate`, written());
        told.textContent = `at most ${clock(steps * seconds)} (${seconds.toPrecision(2)} s a step), about ${bytes(device)} of memory, ${bytes(disk)} of disk`;
      } catch (error) {
        told.textContent = error.message;
      }
    }, 700);
  };
  for (const one of [...numbers, more]) one.control.addEventListener("input", forecast);
  const start = button(run.step && run.state !== "done" ? "Go on" : run.state === "done" ? "Train on" : "Start training", async () => {
    for (const one of numbers) one.blame(one.fault() || (one.get() === undefined ? `${one.label}: a number` : ""));
    const wrong = numbers.find((one) => one.control.getAttribute("aria-invalid"));
    if (wrong) return wrong.control.focus();
    await call("POST", `${at}/train`, written());
    again();
  }, { className: run.state === "done" ? "" : "primary" });
  setTimeout(forecast);
  return h("details", { open: run.state !== "done", ontoggle: forecast }, h("summary", {}, "Training"), h("div", { className: "fields" }, ...[...numbers, ...words].map((one) => one.element)),
    h("div", { className: "actions" }, start, told));
}

async function use(run) {
  const adapter = await call("POST", `/v1/tuning/${encodeURIComponent(run.name)}/adapter`);
  await loadAdapters();
  const trigger = run.training?.trigger;
  fill({ prompt: trigger ? `${trigger} ` : "", model: run.preparation.model, num_frames: Math.max(...run.preparation.num_frames),
    height: run.preparation.height, width: run.preparation.width, loras: [{ path: adapter.id, weight: 1 }] });
  openPlace("create");
  say(`Adapter ${adapter.id} is in the form. Say what to make.`);
}

// Each clip is one element for as long as it is shown, and lets go of its connection after: a browser keeps few.
function showSamples(card, place, run) {
  const steps = [...new Set(run.samples.map((one) => one.step))].slice(-4);
  const shown = run.samples.filter((one) => steps.includes(one.step));
  const key = shown.map((one) => one.file).join();
  if (place.dataset.key === key) return;
  place.dataset.key = key;
  place.hidden = !shown.length;
  card.videos ??= new Map();
  for (const [file, video] of card.videos) if (!shown.some((one) => one.file === file)) {
    video.removeAttribute("src");
    video.load();
    card.videos.delete(file);
  }
  const at = `/v1/tuning/${encodeURIComponent(run.name)}/files`;
  const clip = (one) => {
    if (!card.videos.has(one.file)) card.videos.set(one.file, h("video", { src: `${at}/${one.file}`, controls: true, loop: true, muted: true, playsInline: true, preload: "metadata" }));
    return card.videos.get(one.file);
  };
  const rowOf = (one) => `${one.file.split("-")[1]}-${one.num_frames}`;
  const rows = [...new Set(shown.map(rowOf))];
  const find = (row, step) => shown.find((one) => one.step === step && rowOf(one) === row);
  place.replaceChildren(h("summary", {}, "Samples, the same prompts and seeds at every stage"),
    h("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "A wide table" }, h("table", { className: "samples" },
      h("tr", {}, h("th", {}), ...steps.map((step) => h("th", {}, `step ${step.toLocaleString()}`))),
      ...rows.map((row) => h("tr", {}, h("th", {}, find(row, steps.at(-1))?.prompt ?? "", h("br"), h("small", {}, `${row.split("-")[1]} frames`)),
        ...steps.map((step) => h("td", {}, find(row, step) ? clip(find(row, step)) : "")))))));
}

// Loss over steps, and that of the clips held out.
function drawPlot(losses, heldOut) {
  const [width, height, left, bottom] = [640, 180, 78, 26]; // a phone's letters are twice as large in it
  const every = [...losses, ...heldOut];
  const steps = every.map(([step]) => step);
  const values = every.map(([, loss]) => loss).filter(Number.isFinite);
  const [first, last] = [Math.min(...steps), Math.max(...steps, Math.min(...steps) + 1)];
  const [low, high] = [Math.min(...values), Math.max(...values, Math.min(...values) * 1.0001 + 1e-9)];
  const x = (step) => left + ((step - first) / (last - first)) * (width - left - 8);
  const y = (loss) => 8 + ((high - loss) / (high - low)) * (height - bottom - 12);
  const svg = (tag, properties, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const line = (points, name) => svg("polyline", { class: name, points: points.filter(([, loss]) => Number.isFinite(loss)).map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ") });
  const text = (value, at, where, anchor) => svg("text", { x: at, y: where, "text-anchor": anchor }, value);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Loss from step ${first} to ${last}` },
    svg("line", { x1: left, x2: width - 8, y1: height - bottom, y2: height - bottom, class: "axis" }),
    text(high.toPrecision(3), left - 6, 16, "end"), text(low.toPrecision(3), left - 6, height - bottom, "end"),
    text(String(first), left, height - 5, "start"), text(last.toLocaleString(), width - 8, height - 5, "end"),
    line(losses, "loss"), line(heldOut, "held-out"), ...heldOut.map(([step, loss]) => svg("circle", { cx: x(step), cy: y(loss), r: 3, class: "held-out" })));
  return [picture, h("figcaption", { className: "quiet" }, h("i", { className: "loss" }), " loss", ...(heldOut.length ? [h("i", { className: "held-out" }), " of the clips held out"] : []))];
}
