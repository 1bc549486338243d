// Models and Settings.
import { button, call, h, say } from "./dom.js";
import { loadAdapters, loadSettings } from "./inputs.js";

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);
let built = {};

export function showPages() {
  for (const [name, build] of Object.entries({ models: buildModels, settings: buildSettings })) {
    const place = document.getElementById(name);
    if (!place?.offsetParent) { built[name] = false; continue; }
    if (built[name]) continue;
    built[name] = true;
    build(place).catch((error) => say(error.message, true));
  }
}

async function buildModels(place) {
  const [{ data }, adapters] = await Promise.all([call("GET", "/v1/models"), call("GET", "/v1/adapters")]);
  const file = h("input", { type: "file", accept: ".safetensors", hidden: true, onchange: async () => {
    const form = new FormData();
    form.append("file", file.files[0]);
    try { await call("POST", "/v1/adapters", form); built.models = false; await loadAdapters(); } catch (error) { say(error.message, true); }
  } });
  place.replaceChildren(h("div", { className: "head" }, h("h2", {}, "Adapters"), button("Add a file", () => file.click()), file),
    adapters.length ? h("table", { className: "facts wide" }, h("tr", {}, ...["name", "of", "frames", "size"].map((text) => h("th", {}, text))),
      ...adapters.map((one) => h("tr", {}, h("td", {}, one.id), h("td", {}, one.problem || one.base_model || "unknown"), h("td", {}, one.target_frames ?? ""), h("td", {}, size(one.bytes)))))
      : h("p", { className: "radial-quiet" }, "None yet. Add safetensors files here, or tune one."),
    h("h2", {}, "Models"),
    h("p", { className: "radial-quiet" }, "A model is downloaded when it is first used. Checkpoints of your own go into the folder models of the data folder."),
    h("div", { className: "cards" }, ...data.map((model) => h("article", { className: "radial-card" },
      h("h3", {}, model.id), h("p", {}, model.summary),
      h("p", { className: "radial-quiet" }, `${model.width}x${model.height}, ${model.num_frames} frames (${model.native_frames} native), ${model.fps} a second`),
      h("p", { className: "radial-quiet" }, model.on_disk ? `on disk, ${size(model.on_disk)}` : "not on disk yet"),
      model.removable ? button("Delete from disk", async () => {
        if (!confirm(`Delete ${model.id}, ${size(model.on_disk)}, from the disk?`)) return;
        await call("DELETE", `/v1/models/${model.id}`);
        built.models = false;
        showPages();
      }, { className: "danger" }) : ""))));
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
