// The REST interface as one page, from its OpenAPI description.
import { h } from "./dom.js";

const schema = await (await fetch("/openapi.json")).json();
const name = (ref) => ref.split("/").pop();

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
  return low !== undefined || high !== undefined ? `${low ?? ""} to ${high ?? ""}` : one.pattern ?? "";
}

function fields(of) {
  const wanted = of.required ?? [];
  return h("table", {}, ...Object.entries(of.properties ?? {}).map(([key, value]) =>
    h("tr", {}, h("th", {}, key, wanted.includes(key) ? " *" : ""), h("td", {}, type(value)), h("td", {}, limits(value)))));
}

function operation(path, method, of) {
  const body = of.requestBody && Object.values(of.requestBody.content)[0].schema;
  return h("section", {}, h("h3", {}, h("code", {}, method.toUpperCase()), " ", h("code", {}, path)),
    h("p", {}, of.description ?? of.summary ?? ""),
    of.parameters ? fields({ properties: Object.fromEntries(of.parameters.map((one) => [one.name, one.schema])), required: of.parameters.filter((one) => one.required).map((one) => one.name) }) : "",
    body ? h("p", {}, "Body: ", type(body) || "object") : "", body?.properties ? fields(body) : "");
}

document.querySelector("main").replaceChildren(h("h1", {}, "Radial, REST interface"),
  h("p", {}, "Programs send their key as ", h("code", {}, "Authorization: Bearer KEY"), " where the server has accounts. The description for machines is ",
    h("a", { href: "/openapi.json" }, "openapi.json"), "."),
  ...Object.entries(schema.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, of]) => operation(path, method, of))),
  h("h2", {}, "What is sent and told"),
  ...Object.entries(schema.components.schemas).map(([key, value]) => h("section", {}, h("h3", {}, key), h("p", {}, value.description ?? ""), fields(value))));
