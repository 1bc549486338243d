// Elements, requests, messages. Text from users only ever becomes text: nothing here parses HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element && name !== "list" && name !== "role") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false && child !== ""));
  return element;
}

const SHAPES = {
  create: "M12 5v14M5 12h14", story: "M3 5h18v14H3zM8 5v14M16 5v14M3 10h5M3 14h5M16 10h5M16 14h5", queue: "M4 6h16M4 12h16M4 18h10", gallery: "M4 5h16v14H4zM4 15l4-4 4 4 3-3 5 4",
  tune: "M5 4v7m0 4v5M12 4v3m0 4v9M19 4v9m0 4v3M3 13h4M10 9h4M17 15h4", models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  settings: "M12 9a3 3 0 100 6 3 3 0 000-6zM12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M7 17l-2 2",
  dice: "M4 4h16v16H4zM9 9h.01M15 9h.01M9 15h.01M15 15h.01", up: "M12 19V5M6 11l6-6 6 6", down: "M12 5v14M6 13l6 6 6-6", close: "M6 6l12 12M18 6L6 18",
  star: "M12 3l2.7 5.7 6.3.8-4.6 4.3 1.2 6.2L12 17l-5.6 3 1.2-6.2L3 9.5l6.3-.8z", play: "M7 4l13 8-13 8z", before: "M15 5l-7 7 7 7", after: "M9 5l7 7-7 7",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) svg.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

export async function call(method, path, body) {
  const options = { method, headers: {} };
  if (body instanceof FormData) options.body = body;
  else if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw Object.assign(new Error("the server does not answer"), { lost: true });
  }
  if (answer.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(told.error?.message ?? `the server answered ${answer.status}`), { param: told.error?.param });
  return told;
}

export function say(message, problem = false, action = null) {
  let place = document.getElementById("toasts");
  if (!place) document.body.append((place = h("div", { id: "toasts", role: "status" })));
  const toast = h("p", { className: problem ? "problem" : "" }, message, action ? button(action[0], async () => { await action[1](); toast.remove(); }, { className: "link" }) : "");
  place.append(toast);
  setTimeout(() => toast.remove(), problem || action ? 8000 : 4000);
}

// Runs what a button does: once at a time, problems told. It is not disabled meanwhile, which would lose the focus.
export function button(label, act, properties = {}) {
  const element = h("button", { type: "button", ...properties }, ...[label].flat());
  element.addEventListener("click", async (event) => {
    event.stopPropagation();
    if (element.ariaBusy === "true") return;
    element.ariaBusy = "true";
    try {
      await act(event);
    } catch (error) {
      say(error.message, true);
    } finally {
      element.ariaBusy = null;
    }
  });
  return element;
}

export function dialog(title, ...children) {
  const box = h("dialog", { ariaLabel: title });
  const close = button([icon("close"), h("span", { className: "visually-hidden" }, "Close")], () => box.close(), { className: "bare close" });
  box.append(h("header", {}, h("h2", {}, title), close), h("div", { className: "body" }, ...children));
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
  return box;
}

// A question before something is lost.
export function ask(question, yes) {
  return new Promise((answer) => {
    const box = dialog(question, h("div", { className: "actions" }, button(yes, () => { answer(true); box.close(); }, { className: "danger" }), button("Keep", () => box.close())));
    box.addEventListener("close", () => answer(false));
  });
}

// A moment, as its reader writes times.
export const when = (seconds) => {
  const hours = localStorage.getItem("radial-time");
  return new Date(seconds * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short", ...(hours ? { hour12: hours === "12" } : {}) });
};

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 90) return `${whole} s`;
  if (whole < 5400) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

export const bytes = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.max(count / 1e6, 0.1).toFixed(1)} MB`);
export const many = (count, one, several = `${one}s`) => `${count.toLocaleString()} ${count === 1 ? one : several}`;

// The length that is so many times a model's native one, counted in latent frames.
export const lengthOf = ({ native_frames, first_frame }, stride, times) =>
  Math.floor((native_frames - first_frame) / stride) * times * stride + first_frame;

export const content = (video, variant = "playable", index = 0) =>
  `/v1/videos/${video.id}/content?variant=${variant}&index=${index}`;
