// Models and Settings.
import { button, call, h, say } from "./dom.js";
import { loadAdapters, loadSettings } from "./inputs.js";

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);
let built = {};
let following = false;

export function showPages() {
  followDownloads().catch(() => {});
  for (const [name, build] of Object.entries({ models: buildModels, settings: buildSettings })) {
    const place = document.getElementById(name);
    if (!place?.offsetParent) { built[name] = false; continue; }
    if (built[name]) continue;
    built[name] = true;
    build(place).catch((error) => say(error.message, true));
  }
}

async function buildModels(place) {
  const [{ data }, adapters, downloads] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/adapters"), call("GET", "/v1/downloads").catch(() => null)]);
  const file = h("input", { type: "file", accept: ".safetensors", hidden: true, onchange: async () => {
    const form = new FormData();
    form.append("file", file.files[0]);
    try { await call("POST", "/v1/adapters", form); rebuild(); await loadAdapters(); } catch (error) { say(error.message, true); }
  } });
  const other = h("input", { id: "hub-id", placeholder: "organisation/model", ariaLabel: "Hub id" });
  place.replaceChildren(h("div", { className: "head" }, h("h2", {}, "Adapters"), button("Add a file", () => file.click()), file),
    adapters.length ? h("table", { className: "facts wide" }, h("tr", {}, ...["name", "of", "frames", "size", ""].map((text) => h("th", {}, text))),
      ...adapters.map((one) => h("tr", {}, h("td", {}, one.id), h("td", {}, one.problem ? h("p", { className: "radial-problem" }, one.problem) : one.base_model || "unknown"),
        h("td", {}, one.target_frames ?? ""), h("td", {}, size(one.bytes)), h("td", {}, downloads ? button("Delete", () => remove("adapters", one.id)) : ""))))
      : h("p", { className: "radial-quiet" }, "None yet. Add safetensors files here, or tune one."),
    h("div", { className: "head" }, h("h2", {}, "Models"), downloads ? h("span", { className: "actions" }, other, button("Download", () => fetchModel(other.value.trim()))) : ""),
    h("p", { className: "radial-quiet" }, "A model that is not here yet is downloaded when it is first used, or now. Checkpoints of your own go into the folder models of the data folder."),
    h("div", { className: "cards" }, ...data.map((model) => card(model, downloads))));
  for (const one of downloads ?? []) showDownload(place, one);
  following = (downloads ?? []).some((one) => one.state === "running");
}

const rebuild = () => { built.models = false; showPages(); };

async function remove(kind, id) {
  if (!confirm(`Move ${id} into the trash beside it?`)) return;
  await call("DELETE", `/v1/${kind}/${encodeURIComponent(id)}`);
  rebuild();
  await loadAdapters();
}

function card(model, downloads) {
  if (model.problem) {
    return h("article", { className: "radial-card", dataset: { model: model.id } }, h("h3", {}, model.id), h("p", { className: "radial-problem" }, model.problem),
      h("div", { className: "download" }), h("div", { className: "actions" }, downloads ? button("Delete", () => remove("models", model.id), { className: "danger" }) : ""));
  }
  const local = model.own || (model.on_disk && !model.removable);
  return h("article", { className: "radial-card", dataset: { model: model.id } },
    h("h3", {}, model.id), h("p", {}, model.summary),
    h("p", { className: "radial-quiet" }, `${model.width}x${model.height}, ${model.num_frames} frames (${model.native_frames} native), ${model.fps} a second`),
    h("p", { className: "radial-quiet" }, model.on_disk ? `on disk, ${size(model.on_disk)}` : "not on disk yet"),
    h("div", { className: "download" }),
    h("div", { className: "actions" },
      local || !downloads ? "" : button(model.on_disk ? "Fetch what is missing" : "Download", () => fetchModel(model.id)),
      model.own && downloads ? button("Delete", () => remove("models", model.id), { className: "danger" }) : "",
      model.removable && downloads ? button("Delete from disk", async () => {
        if (!confirm(`Delete ${model.id}, ${size(model.on_disk)}, from the disk?`)) return;
        await call("DELETE", `/v1/models/${model.id}`);
        rebuild();
      }, { className: "danger" }) : ""));
}

async function fetchModel(id) {
  if (!id) throw new Error("say which: organisation/model");
  await call("POST", `/v1/downloads/${id}`);
  rebuild();
}

// How far a download is, on its model's card, or on one of its own where the model has none.
function showDownload(place, one) {
  let box = [...place.querySelectorAll("[data-model]")].find((element) => element.dataset.model === one.id);
  if (!box && one.state === "done") return;
  if (!box) {
    box = h("article", { className: "radial-card", dataset: { model: one.id } }, h("h3", {}, one.id), h("div", { className: "download" }),
      h("div", { className: "actions" }, button("Go on", () => fetchModel(one.id))));
    place.querySelector(".cards").prepend(box);
  }
  const running = one.state === "running";
  box.querySelector(".actions").hidden = running;
  box.querySelector(".download").replaceChildren(
    running ? h("div", { className: "bar" }, h("progress", one.total ? { value: one.done, max: one.total } : {}), h("span", { className: "eta" }, one.total ? `${size(one.done)} of ${size(one.total)}` : "asking the hub")) : "",
    running ? h("div", { className: "actions" }, button("Stop", async () => { await call("DELETE", `/v1/downloads/${one.id}`); rebuild(); })) : "",
    one.state === "stopped" ? h("p", { className: "radial-quiet" }, "The download was stopped; what came is kept.") : "",
    one.problem ? h("p", { className: "radial-problem" }, one.problem) : "");
}

async function followDownloads() {
  const place = document.getElementById("models");
  if (!following || !place?.offsetParent) return;
  const downloads = await call("GET", "/v1/downloads");
  if (downloads.some((one) => one.state === "running")) for (const one of downloads) showDownload(place, one);
  else rebuild();
}

async function buildSettings(place) {
  const about = await call("GET", "/v1/about");
  const file = h("input", { type: "file", accept: "video/mp4,video/webm", hidden: true, onchange: () => file.files[0] && loadSettings(file.files[0]) });
  const dark = document.body.classList.contains("dark");
  place.replaceChildren(h("h2", {}, "Settings"),
    h("table", { className: "facts" },
      h("tr", {}, h("th", {}, "Version"), h("td", {}, about.radial)),
      h("tr", {}, h("th", {}, "Account"), h("td", {}, about.account ? `${about.account}${about.admin ? ", admin" : ""}` : "this machine alone")),
      h("tr", {}, h("th", {}, "Videos go to"), h("td", {}, about.outputs)),
      h("tr", {}, h("th", {}, "Data"), h("td", {}, about.data))),
    h("div", { className: "actions" },
      button(dark ? "Light colours" : "Dark colours", () => window.radial.theme(dark ? "light" : "dark")),
      button("Load the settings of a video", () => file.click()), file,
      h("a", { href: "/docs" }, "REST interface"),
      about.account ? h("form", { method: "post", action: "/logout" }, h("button", {}, "Log out")) : ""));
}
