// The fields of every form: a label, a control, a hint and a fault. Empty means: the model's own value.
import { h } from "./dom.js";

let counted = 0;

// Each has get() and set(value), and calls `change` when its user has changed it.
export function field(name, label, control, { hint = "", whole = false, get, set, change = () => {} } = {}) {
  control.id ||= `field-${name}-${(counted += 1)}`;
  const told = h("span", { className: "hint", id: `${control.id}-hint`, hidden: !hint }, hint);
  const fault = h("span", { className: "fault", id: `${control.id}-fault`, hidden: true });
  const element = h("div", { className: `field${whole ? " whole" : ""}`, dataset: { field: name } }, h("label", { htmlFor: control.id }, label), control, told, fault);
  const describe = () => control.setAttribute("aria-describedby", [told, fault].filter((one) => !one.hidden).map((one) => one.id).join(" "));
  describe();
  control.addEventListener(control.tagName === "SELECT" || control.type === "checkbox" ? "change" : "input", change);
  return {
    name, label, element, control,
    get: get ?? (() => control.value || undefined),
    set: set ?? ((value) => { control.value = value ?? ""; }),
    hint(text) { told.textContent = text; told.hidden = !text; describe(); },
    blame(text) {
      fault.textContent = text ?? "";
      fault.hidden = !text;
      if (text) control.setAttribute("aria-invalid", "true");
      else control.removeAttribute("aria-invalid");
      describe();
    },
    fault: () => "",
  };
}

export function text(name, label, { rows = 0, placeholder = "", maxLength = 20000, list = "", ...more } = {}) {
  const control = rows ? h("textarea", { rows, placeholder, maxLength, name }) : h("input", { type: "text", placeholder, maxLength, name, autocomplete: "off" });
  if (list) control.setAttribute("list", list);
  return field(name, label, control, more);
}

export function number(name, label, { minimum, maximum, type = "number", placeholder = "", ...more } = {}) {
  const whole = type === "integer";
  const control = h("input", { type: "number", name, placeholder, step: whole ? 1 : "any", inputMode: whole ? "numeric" : "decimal" });
  const one = field(name, label, control, { ...more, get: () => (control.value === "" ? undefined : Number(control.value)) });
  one.fault = () => {
    const range = maximum > 1e9 ? `from ${minimum}` : `from ${minimum} to ${maximum.toLocaleString()}`;
    if (control.validity.badInput) return `${label}: a number ${range}`;
    if (control.value === "") return "";
    const value = Number(control.value);
    if (whole && !Number.isInteger(value)) return `${label}: a whole number ${range}`;
    return value < minimum || value > maximum ? `${label}: a number ${range}, not ${value}` : "";
  };
  return one;
}

export function choice(name, label, options, more = {}) {
  const control = h("select", { name });
  const one = field(name, label, control, more);
  one.fill = (wanted) => {
    const value = control.value;
    control.replaceChildren(...wanted.map((option) => (option.group
      ? h("optgroup", { label: option.group }, ...option.options.map(([key, words]) => h("option", { value: key }, words)))
      : h("option", { value: option[0] }, option[1]))));
    control.value = value;
    if (control.selectedIndex < 0) control.selectedIndex = 0;
  };
  one.fill(options);
  const plain = one.set;
  one.set = (value) => {
    if (value !== undefined && value !== null && ![...control.options].some((option) => option.value === String(value))) control.append(h("option", { value }, String(value)));
    plain(value);
    if (control.selectedIndex < 0) control.selectedIndex = 0;
  };
  return one;
}

export function check(name, label, { value = false, change = () => {}, hint = "" } = {}) {
  const control = h("input", { type: "checkbox", name, id: `field-${name}-${(counted += 1)}`, checked: value, onchange: change });
  return {
    name, label, control, element: h("div", { className: "check", dataset: { field: name } }, control, h("label", { htmlFor: control.id, title: hint }, label)),
    get: () => (control.checked === value ? undefined : control.checked), set: (now) => { control.checked = now ?? value; }, blame: () => {}, hint: () => {}, fault: () => "",
  };
}

// A choice whose state is seen and heard.
export function switches(label, options, act) {
  const buttons = options.map(([key, words, why]) => h("button", { type: "button", dataset: { key }, ariaPressed: "false", title: why ?? "", onclick: () => act(key) }, words));
  return { element: h("div", { className: "choices", role: "group", ariaLabel: label }, ...buttons), show: (key) => buttons.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.key === String(key)))) };
}

export const group = (legend, ...parts) => h("fieldset", {}, h("legend", {}, legend), ...parts);
