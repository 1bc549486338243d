// Settings: colours, what tells that a clip is done, settings out of a video, and the keys.
import { ask, button, call, dialog, h, say } from "./dom.js";
import { defaults, draft, keepDefaults, withoutFiles } from "./draft.js";
import { switches, text } from "./fields.js";
import { loadSettings } from "./inputs.js";
import { openPlace } from "./router.js";

const KEYS = [["Ctrl or ⌘ + Enter", "Generate"], ["g then c, y, q, g, t, m, s", "Create, Story, Queue, Gallery, Tune, Models, Settings"], ["/", "Write a prompt"], ["← →", "Previous and next video"], [", .", "One frame back and on"],
  ["f", "Favourite"], ["Esc", "Close"], ["?", "This list"]];
const stored = (name) => localStorage.getItem(`radial-${name}`);
let built = false;

export async function showSettings() {
  const place = document.getElementById("settings");
  if (place.hidden || built) return;
  built = true;
  const about = await call("GET", "/v1/about");
  const file = h("input", { type: "file", accept: "video/*", hidden: true, onchange: () => file.files[0] && loadSettings(file.files[0]) });
  const theme = switches("Colours", [["", "as the system"], ["light", "light"], ["dark", "dark"]], (name) => setTheme(name));
  const setTheme = (name) => {
    if (name) localStorage.setItem("radial-theme", name);
    else localStorage.removeItem("radial-theme");
    document.documentElement.dataset.theme = name || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    theme.show(name);
  };
  theme.show(stored("theme") ?? "");
  const hours = switches("Times of day", [["", "as the system"], ["24", "24 hours"], ["12", "12 hours"]], (name) => { localStorage.setItem("radial-time", name); hours.show(name); });
  hours.show(stored("time") ?? "");
  const begins = h("p", { className: "quiet", role: "status" });
  const tellDefaults = () => {
    const { request = {}, file = {} } = defaults();
    const told = [...Object.entries(request), ...Object.entries(file)].map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`);
    begins.textContent = told.length ? `${told.join(", ")}.` : "The bundled model, with its own values.";
  };
  tellDefaults();
  const keys = h("section", { className: "card", id: "keys" });
  if (about.account) await drawKeys(keys);
  const tell = (name, words, ready) => {
    const box = h("input", { type: "checkbox", id: `tell-${name}`, checked: stored(name) === "on", onchange: async () => {
      if (box.checked && ready && !(await ready())) box.checked = false;
      localStorage.setItem(`radial-${name}`, box.checked ? "on" : "off");
    } });
    return h("div", { className: "check" }, box, h("label", { htmlFor: box.id }, words));
  };
  const allowed = async () => (await Notification.requestPermission()) === "granted" || (say("The browser does not allow it for this page.", true), false);
  const fact = (name, value) => (value ? h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)) : "");
  place.replaceChildren(h("h1", {}, "Settings"),
    h("section", { className: "card" }, h("h2", {}, "Colours"), theme.element),
    h("section", { className: "card" }, h("h2", {}, "Times of day"), hours.element),
    h("section", { className: "card" }, h("h2", {}, "What a new form begins with"), begins, h("div", { className: "actions" },
      button("What Create holds now", () => {
        const { prompt, seed, ...request } = withoutFiles(draft.request);
        keepDefaults({ request, file: draft.file });
        tellDefaults();
      }), button("The model's own values", () => { keepDefaults({}); tellDefaults(); }))),
    about.account ? keys : "",
    h("section", { className: "card" }, h("h2", {}, "When a clip is done"), tell("notify", "Show a notification of the browser", "Notification" in window ? allowed : async () => false), tell("sound", "Play a sound")),
    h("section", { className: "card" }, h("h2", {}, "Settings of a video"), h("p", { className: "quiet" }, "A video that was made here carries how it was made. Drop it anywhere on the page, or choose it."), h("div", { className: "actions" }, button("Choose a video", () => file.click()), file)),
    h("section", { className: "card" }, h("h2", {}, "This server"), h("table", {}, fact("Version", about.radial), fact("Account", about.account ? `${about.account}${about.admin ? ", admin" : ""}` : "this machine alone"), fact("Videos go to", about.outputs), fact("Data", about.data)),
      h("div", { className: "actions" }, h("a", { className: "button", href: "/docs", target: "_blank" }, "REST interface"), button("Keys", showKeys), about.account ? h("form", { method: "post", action: "/logout" }, h("button", {}, "Log out")) : "")));
}

// Keys by which programs of an account come in.
async function drawKeys(place) {
  const found = await call("GET", "/v1/keys");
  const label = text("label", "What a new key is for", { maxLength: 100, placeholder: "today's date" });
  place.replaceChildren(h("h2", {}, "Keys for programs"), h("p", { className: "quiet" }, "A program sends one as Authorization: Bearer KEY, and has what you have."),
    found.length ? h("ul", { className: "loras" }, ...found.map((key) => h("li", {}, h("code", {}, `${key.id}...`), h("span", {}, key.label),
      button("Take it back", async () => { if (await ask(`Take back ${key.id}...? Programs that use it are locked out.`, "Take it back")) { await call("DELETE", `/v1/keys/${key.id}`); await drawKeys(place); } }, { className: "danger" })))) : "",
    h("div", { className: "beside" }, label.element, button("Make a key", async () => {
      const made = await call("POST", "/v1/keys", { label: label.get() ?? "" });
      dialog("A new key", h("p", {}, "It is shown this once:"), h("pre", {}, made.key));
      await drawKeys(place);
    })));
}

export function showKeys() {
  if (document.querySelector("dialog")) return;
  dialog("Keys", h("table", {}, ...KEYS.map(([keys, words]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, keys)), h("td", {}, words)))));
}

let before = null;
// Whoever wants to be told is, once a clip is done that was not when the page last looked.
export function tellDone(queue) {
  const done = queue.counts.done ?? 0;
  if (before !== null && done > before) {
    if (stored("notify") === "on" && document.hidden && Notification.permission === "granted") new Notification("Radial", { body: "A clip is done.", icon: "/ui/icon.svg", tag: "radial" });
    if (stored("sound") === "on") chime();
  }
  before = done;
}

function chime() {
  const audio = new AudioContext();
  const [tone, volume] = [audio.createOscillator(), audio.createGain()];
  tone.frequency.value = 660;
  volume.gain.setValueAtTime(0.12, audio.currentTime);
  volume.gain.exponentialRampToValueAtTime(0.001, audio.currentTime + 0.6);
  tone.connect(volume).connect(audio.destination);
  tone.start();
  tone.stop(audio.currentTime + 0.6);
}

let pressed = "";
export function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select") || document.querySelector("dialog")) return;
    const place = { c: "create", y: "story", q: "queue", g: "gallery", t: "tune", m: "models", s: "settings" }[event.key];
    if (pressed === "g" && place) openPlace(place);
    else if (event.key === "?") showKeys();
    else if (event.key === "/") { event.preventDefault(); openPlace("create"); document.getElementById("prompt").focus(); }
    pressed = event.key;
  });
}
