// Many videos at once: a list of prompts, a table, JSON lines or YAML, seen before it is queued.
import { button, call, clock, dialog, h, many, say } from "./dom.js";
import { draft, then } from "./draft.js";
import { choice, text } from "./fields.js";

const KINDS = [["txt", "prompts, one a line"], ["csv", "CSV, with a header"], ["jsonl", "JSON lines"], ["yaml", "YAML, with grids and wildcards"]];
const HELP = { txt: "{red|blue} stands for each word. Lines that begin with # are left out.", csv: "A header such as prompt,seed,num_frames.", jsonl: 'A line such as {"prompt": "a red star rises", "seed": 1}.',
  yaml: "jobs: a list; grid: every combination; wildcards: words for __name__." };

export async function addMany(file) {
  const words = text("list", "List", { rows: 8, whole: true, maxLength: 900_000, change: () => forget() });
  const kind = choice("kind", "Written as", KINDS, { change: () => { kind.hint(HELP[kind.get()]); forget(); } });
  const settings = h("input", { type: "checkbox", id: "list-settings", checked: true, onchange: () => forget() });
  const problem = h("p", { className: "problem prompt", role: "alert", hidden: true });
  const found = h("div", { className: "stack" });
  const picked = h("input", { type: "file", accept: ".txt,.csv,.jsonl,.yaml,.yml", hidden: true, onchange: () => picked.files[0] && read(picked.files[0]) });
  const forget = () => { found.replaceChildren(); problem.hidden = true; };
  const read = async (one) => {
    words.set(await one.text());
    kind.set(/\.(csv|jsonl)$/i.exec(one.name)?.[1].toLowerCase() ?? (/\.ya?ml$/i.test(one.name) ? "yaml" : "txt"));
    kind.hint(HELP[kind.get()]);
    await look();
  };
  const body = (dry_run) => {
    const { prompt, seed, num_videos, ...others } = draft.request;
    return { text: words.get() ?? "", kind: kind.get(), dry_run, defaults: settings.checked ? { ...others, ...then() } : {}, ...(Object.keys(draft.file).length ? { file: draft.file } : {}) };
  };
  const send = async (dry_run) => {
    forget();
    try {
      return await call("POST", "/v1/lists", body(dry_run));
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
      return null;
    }
  };
  const look = async () => {
    const told = await send(true);
    if (!told) return;
    const seconds = told.data.every((one) => one.render_seconds) ? told.data.reduce((sum, one) => sum + one.render_seconds, 0) : null;
    found.replaceChildren(...told.warnings.map((warning) => h("p", { className: "warn" }, warning)),
      h("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "A wide table" }, h("table", { className: "wide" }, h("thead", {}, h("tr", {}, ...["Line", "Prompt", "Model", "Size", "Length", "Steps", "Seed"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, ...told.data.slice(0, 100).map((one) => h("tr", {}, ...[one.source, one.prompt, one.model, one.size, `${one.seconds.toFixed(1)} s`, one.num_inference_steps, one.seed].map((value) => h("td", {}, String(value)))))))),
      told.data.length > 100 ? h("p", { className: "quiet" }, `and ${told.data.length - 100} more`) : "",
      h("div", { className: "actions" }, button(`Queue ${many(told.data.length, "video")}`, async () => {
        const queued = await send(false);
        if (!queued) return;
        box.close();
        say(`${many(queued.ids.length, "video")} queued.`);
      }, { className: "primary" }), seconds === null ? "" : h("span", { className: "quiet" }, `about ${clock(seconds)} in all`)));
  };
  kind.hint(HELP.txt);
  const box = dialog("Many videos", h("p", { className: "quiet" }, "The lists of radial render. Write one, or drop a file anywhere on the page."), kind.element, words.element,
    h("div", { className: "check" }, settings, h("label", { htmlFor: "list-settings" }, "Where a row says nothing, as Create is set now")), problem,
    h("div", { className: "actions" }, button("See what it makes", look), button("Choose a file", () => picked.click()), picked), found);
  if (file) await read(file);
}
