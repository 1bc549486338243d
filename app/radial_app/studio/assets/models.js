// Models and adapters: what is here, what can come, and what goes.
import { ask, button, bytes, call, dialog, h, say } from "./dom.js";
import { buildForm } from "./form.js";
import { loadAdapters } from "./inputs.js";

let shown = false;
let following = null;

export async function showModels(anew = false) {
  const place = document.getElementById("models");
  if (place.hidden) { clearTimeout(following); following = null; return; }
  if (shown && !anew) return follow();
  shown = true;
  const [{ data }, adapters, downloads] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/adapters"), call("GET", "/v1/downloads").catch(() => null)]);
  draw(place, data, adapters, downloads);
  follow();
}

function draw(place, models, adapters, downloads) {
  const file = h("input", { type: "file", accept: ".safetensors", hidden: true, onchange: async () => {
    const form = new FormData();
    form.append("file", file.files[0]);
    try { await call("POST", "/v1/adapters", form); await changed(); } catch (error) { say(error.message, true); }
  } });
  const search = h("input", { type: "search", id: "model-search", placeholder: "Search models", ariaLabel: "Search models", value: place.dataset.search ?? "", oninput: () => { place.dataset.search = search.value; sift(); } });
  const sift = () => { for (const card of place.querySelectorAll("[data-model]")) card.hidden = !card.textContent.toLowerCase().includes(search.value.toLowerCase()); };
  const other = h("input", { id: "hub-id", placeholder: "organisation/model", ariaLabel: "Hub id" });
  const here = (one) => one.on_disk || one.own || one.problem;
  const list = (title, found) => (found.length ? [h("h2", {}, title), h("div", { className: "cards" }, ...found.map((model) => card(model, downloads)))] : []);
  place.replaceChildren(h("div", { className: "head" }, h("h1", {}, "Models"), search),
    h("p", { className: "quiet" }, "A model that is not here yet is downloaded when it is first used, or now. Checkpoints of your own go into the folder models of the data folder."),
    downloads ? h("form", { className: "beside", onsubmit: (event) => { event.preventDefault(); fetchModel(other.value.trim()).catch((error) => say(error.message, true)); } }, other, h("button", {}, "Download")) : "",
    h("div", { className: "cards coming" }),
    ...list("On this machine", models.filter(here)), ...list("To download", models.filter((one) => !here(one))),
    h("div", { className: "head" }, h("h2", {}, "Adapters (LoRA)"), downloads ? button("Add a file", () => file.click()) : "", file),
    adapters.length ? h("div", { className: "scroll card" }, h("table", { className: "wide" }, h("thead", {}, h("tr", {}, ...["Name", "For", "Frames", "Size", "What to do"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...adapters.map((one) => h("tr", {}, h("td", {}, one.id), h("td", {}, one.problem ? h("span", { className: "problem" }, one.problem) : one.base_model || "unknown"),
        h("td", {}, one.target_frames ?? ""), h("td", {}, bytes(one.bytes)), h("td", {}, h("div", { className: "actions" }, button("What is in it", () => inspect(one.id)), downloads && !one.bundled ? button("Delete", () => remove("adapters", one.id)) : "")))))))
      : h("p", { className: "quiet" }, "None yet. Add safetensors files here, or tune one."));
  for (const one of downloads ?? []) showDownload(place, one);
  sift();
}

const changed = async () => { await showModels(true); await Promise.all([loadAdapters(), buildForm(document.getElementById("form-place"))]); };

async function inspect(id) {
  const { lines } = await call("GET", `/v1/adapters/${encodeURIComponent(id)}`);
  dialog(id, h("pre", {}, lines.join("\n")));
}

async function remove(kind, id) {
  if (!(await ask(`Move ${id} into the trash beside it?`, "Move to the trash"))) return;
  await call("DELETE", `/v1/${kind}/${encodeURIComponent(id)}`);
  await changed();
}

function card(model, downloads) {
  const id = model.id;
  if (model.problem) return h("article", { className: "card", dataset: { model: id } }, h("h3", {}, id), h("p", { className: "problem" }, model.problem), h("div", { className: "download" }),
    h("div", { className: "actions" }, downloads ? button("Delete", () => remove("models", id), { className: "danger" }) : ""));
  const local = model.own || (model.on_disk && !model.removable);
  return h("article", { className: "card", dataset: { model: id } }, h("h3", {}, id), h("p", {}, model.summary),
    h("p", { className: "quiet" }, `${model.width}x${model.height}, ${(model.native_frames / model.fps).toFixed(1)} s at ${model.fps} frames a second; from ${model.starts_from.join(" or ") || "Python alone"}`),
    h("p", { className: "quiet" }, [model.on_disk ? `${bytes(model.on_disk)} on disk` : model.download ? `about ${bytes(model.download)} to download` : "not on disk yet",
      model.memory ? `takes about ${bytes(model.memory)} of a GPU's memory, ${bytes(model.least_memory)} at the least` : ""].filter(Boolean).join("; ")),
    h("div", { className: "download" }),
    h("div", { className: "actions" }, local || !downloads ? "" : button(model.on_disk ? "Fetch what is missing" : "Download", () => fetchModel(id), { ariaLabel: `${model.on_disk ? "Fetch what is missing of" : "Download"} ${id}` }),
      model.own && downloads ? button("Delete", () => remove("models", id), { className: "danger" }) : "",
      model.removable && downloads ? button("Delete from disk", async () => {
        if (!(await ask(`Delete ${id}, ${bytes(model.on_disk)}, from the disk?`, "Delete"))) return;
        await call("DELETE", `/v1/models/${id}`);
        await changed();
      }, { className: "danger" }) : ""));
}

async function fetchModel(id) {
  if (!id) throw new Error("say which: organisation/model");
  await call("POST", `/v1/downloads/${id}`);
  await showModels(true);
}

// How far a download is, on its model's card, or on one of its own where the model has none.
function showDownload(page, one) {
  let box = [...page.querySelectorAll("[data-model]")].find((element) => element.dataset.model === one.id);
  if (!box && one.state === "done") return;
  if (!box) {
    box = h("article", { className: "card", dataset: { model: one.id } }, h("h3", {}, one.id), h("div", { className: "download" }), h("div", { className: "actions" }, button("Go on", () => fetchModel(one.id))));
    page.querySelector(".coming").prepend(box);
  }
  const running = one.state === "running";
  box.querySelector(":scope > .actions").hidden = running;
  const place = box.querySelector(".download");
  if (running) {
    // Made once: a button that is made anew under a pointer takes no click.
    if (!place.querySelector("progress")) place.replaceChildren(h("div", { className: "bar" }, h("progress", { ariaLabel: `Download of ${one.id}` }), h("span", { className: "eta quiet" })),
      h("div", { className: "actions" }, button("Stop", async () => { place.querySelector(".eta").textContent = "stopping"; await call("DELETE", `/v1/downloads/${one.id}`); await showModels(true); })));
    if (one.total) Object.assign(place.querySelector("progress"), { max: one.total, value: one.done });
    place.querySelector(".eta").textContent = one.total ? `${bytes(one.done)} of ${bytes(one.total)}` : "asking the hub";
    return;
  }
  place.replaceChildren(
    one.state === "stopped" ? h("p", { className: "quiet" }, "The download was stopped; what came is kept.") : "", one.problem ? h("p", { className: "problem" }, one.problem) : "");
}

// As long as something comes and somebody looks.
function follow() {
  clearTimeout(following);
  following = setTimeout(async () => {
    const place = document.getElementById("models");
    if (place.hidden || !place.querySelector(".download progress")) return;
    const downloads = await call("GET", "/v1/downloads").catch(() => []);
    if (downloads.some((one) => one.state === "running")) for (const one of downloads) showDownload(place, one);
    else return changed();
    follow();
  }, 1000);
}
