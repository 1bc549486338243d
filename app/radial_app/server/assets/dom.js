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
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
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
    throw new Error("the server does not answer");
  }
  if (answer.status === 401) location.assign("/login");
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error?.message ?? `the server answered ${answer.status}`);
  return told;
}

export function say(message, problem = false) {
  let place = document.getElementById("radial-toasts");
  if (!place) {
    place = h("div", { id: "radial-toasts", role: "status" });
    document.body.append(place);
  }
  const toast = h("p", { className: problem ? "problem" : "" }, message);
  place.append(toast);
  setTimeout(() => toast.remove(), problem ? 8000 : 3500);
}

// Runs what a button does: disabled meanwhile, problems told.
export function button(label, act, properties = {}) {
  const element = h("button", { type: "button", ...properties }, label);
  element.addEventListener("click", async (event) => {
    event.stopPropagation();
    element.disabled = true;
    try {
      await act();
    } catch (error) {
      say(error.message, true);
    } finally {
      element.disabled = false;
    }
  });
  return element;
}

export function dialog(title, ...children) {
  const box = h("dialog", { className: "radial-dialog", ariaLabel: title });
  const close = button("Close", () => box.close(), { className: "close" });
  box.append(h("header", {}, h("h2", {}, title), close), h("div", { className: "body" }, ...children));
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
  return box;
}

export function clock(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 90) return `${whole} s`;
  if (whole < 5400) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

// The length that is so many times a model's native one, counted in latent frames.
export const lengthOf = ({ native_frames, first_frame }, stride, times) =>
  Math.floor((native_frames - first_frame) / stride) * times * stride + first_frame;

export const content = (video, variant = "playable", index = 0) =>
  `/v1/videos/${video.id}/content?variant=${variant}&index=${index}`;

// A hidden field of Gradio's, and what it holds.
export function hidden(id) {
  const field = () => document.querySelector(`#${id} textarea, #${id} input`);
  return {
    get: () => field()?.value ?? "",
    set: (value) => {
      const element = field();
      if (!element || element.value === value) return;
      Object.getOwnPropertyDescriptor(Object.getPrototypeOf(element), "value").set.call(element, value);
      element.dispatchEvent(new Event("input", { bubbles: true }));
    },
  };
}

export function openPage(name) {
  const label = { create: "Create", queue: "Queue", gallery: "Gallery", tune: "Tune", models: "Models", settings: "Settings" }[name];
  for (const tab of document.querySelectorAll('#pages button[role="tab"]'))
    if (tab.textContent.trim() === label) tab.click();
}
