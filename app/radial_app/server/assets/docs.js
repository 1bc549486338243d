// The REST interface as one page, from its OpenAPI description: what each call takes, in curl and Python, and tried here.
import { h } from "./dom.js";

const schema = await (await fetch("/openapi.json")).json();
const name = (ref) => ref.split("/").pop();
const resolved = (of) => (of?.$ref ? schema.components.schemas[name(of.$ref)] : of) ?? {};

function type(of) {
  if (!of) return "";
  if (of.$ref) return name(of.$ref);
  if (of.anyOf) return of.anyOf.map(type).filter((one) => one !== "null").join(" or ");
  if (of.enum) return of.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (of.const) return JSON.stringify(of.const);
  if (of.type === "array") return `list of ${type(of.items)}`;
  return of.type ?? "any";
}

function limits(of) {
  const one = (of.anyOf ?? [of]).find((part) => part.type !== "null") ?? of;
  const low = one.minimum ?? one.exclusiveMinimum;
  const high = one.maximum ?? one.exclusiveMaximum;
  return low !== undefined || high !== undefined ? `${low ?? ""} to ${high ?? ""}` : "";
}

// Words between backquotes are code, here as in the source that they come from.
const words = (text = "") => text.split(/(``[^`]+``|`[^`]+`)/).map((part) => (/^`/.test(part) ? h("code", {}, part.replaceAll("`", "")) : part));

function fields(of) {
  const wanted = of.required ?? [];
  const rows = Object.entries(of.properties ?? {});
  return rows.length ? h("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "A wide table" }, h("table", {}, ...rows.map(([key, value]) =>
    h("tr", {}, h("th", { scope: "row" }, key, wanted.includes(key) ? " (needed)" : ""), h("td", {}, type(value)), h("td", {}, limits(value)), h("td", {}, ...words(value.description)))))) : "";
}

// A body that says what must be said, and no more.
function example(of) {
  const body = resolved(of);
  const value = (one) => (one.enum ? one.enum[0] : { string: "a red fox runs through snow", integer: 1, number: 1, boolean: true, array: [], object: {} }[resolved(one).type] ?? {});
  return Object.fromEntries((body.required ?? []).map((key) => [key, value(body.properties[key])]));
}

function operation(path, method, of) {
  const content = of.requestBody?.content ?? {};
  const json = content["application/json"]?.schema;
  const upload = content["multipart/form-data"]?.schema;
  const parameters = of.parameters ?? [];
  const shown = json ? JSON.stringify(example(json)) : "";
  const url = `${location.origin}${path}`;
  const curl = `curl${method === "get" ? "" : ` -X ${method.toUpperCase()}`} ${url}${json ? ` -H 'content-type: application/json' -d '${shown}'` : upload ? " -F file=@FILE" : ""}`;
  const python = `httpx.${method}("${url}"${json ? `, json=${shown.replaceAll("true", "True")}` : upload ? ', files={"file": open("FILE", "rb")}' : ""}).json()`;
  return h("details", {}, h("summary", {}, h("code", {}, method.toUpperCase()), " ", h("code", {}, path), " ", h("span", { className: "quiet" }, ...words((of.description ?? of.summary ?? "").replace(/\s+/g, " ").split(/(?<=\.) /)[0]))),
    h("p", {}, ...words(of.description)), fields({ properties: Object.fromEntries(parameters.map((one) => [one.name, { description: one.description, ...one.schema }])), required: parameters.filter((one) => one.required).map((one) => one.name) }),
    json ? h("div", {}, h("p", {}, "Body: ", type(json) || "object"), fields(resolved(json))) : "",
    h("pre", {}, curl), h("pre", {}, python), upload || path.endsWith("/events") ? "" : tried(path, method, parameters, json && JSON.stringify(example(json), null, 2)));
}

function tried(path, method, parameters, body) {
  const told = h("pre", { role: "status" });
  const inputs = parameters.map((one) => [one, h("input", { ariaLabel: one.name, placeholder: one.name })]);
  const text = body === undefined ? null : h("textarea", { rows: 4, ariaLabel: "Body", value: body });
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    let filled = path;
    const query = new URLSearchParams();
    for (const [one, input] of inputs) {
      if (one.in === "path") filled = filled.replace(`{${one.name}}`, encodeURIComponent(input.value));
      else if (input.value) query.set(one.name, input.value);
    }
    const answer = await fetch(`${filled}${[...query].length ? `?${query}` : ""}`, text ? { method, body: text.value, headers: { "content-type": "application/json" } } : { method });
    const kind = answer.headers.get("content-type") ?? "";
    const said = kind.includes("json") ? JSON.stringify(await answer.json(), null, 2) : kind.startsWith("text/") ? await answer.text() : `${kind}, ${(await answer.blob()).size.toLocaleString()} bytes`;
    told.textContent = `${answer.status}\n${said.slice(0, 20000)}`;
  } }, ...inputs.map(([, input]) => input), text ?? "", h("button", {}, "Try it"), told);
}

const groups = Map.groupBy ? Map.groupBy(Object.entries(schema.paths), ([, methods]) => Object.values(methods)[0].tags?.[0] ?? "server") : new Map([["all", Object.entries(schema.paths)]]);
document.querySelector("main").replaceChildren(h("h1", {}, "Radial, REST interface"),
  h("p", {}, "Programs send their key as ", h("code", {}, "Authorization: Bearer KEY"), " where the server has accounts. The description for machines is ",
    h("a", { href: "/openapi.json" }, "openapi.json"), "."),
  ...[...groups].flatMap(([group, paths]) => [h("h2", {}, group), ...paths.flatMap(([path, methods]) => Object.entries(methods).map(([method, of]) => operation(path, method, of)))]),
  h("h2", {}, "What is sent and told"),
  ...Object.entries(schema.components.schemas).map(([key, value]) => h("details", {}, h("summary", {}, h("code", {}, key)), h("p", {}, ...words(value.description)), fields(value))));
