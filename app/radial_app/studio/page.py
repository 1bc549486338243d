"""The studio's page."""

from __future__ import annotations

import html
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from fastapi import APIRouter, Body, FastAPI, Request

from radial.errors import RadialError
from radial.models.find import find_model
from radial.models.spec import ModelSpec
from radial.models.table import MODELS
from radial.request import GenerationRequest
from radial.version import __version__
from radial_app.server.accounts import LOCAL
from radial_app.server.service import ServerPaths, Service, store_in
from radial_app.server.uploads import Inputs
from radial_app.studio.form import OWN, Form
from radial_app.studio.gradio_door import GradioDoor

_SKELETON = '<div id="{id}" class="radial-pane" aria-live="polite"><p class="radial-quiet">Loading...</p></div>'
HEAD = """
<link rel="stylesheet" href="/ui/studio.css">
<script type="module" src="/ui/studio.js"></script>
<meta name="color-scheme" content="light dark">
"""


def theme() -> gr.themes.Base:
    """Quiet colours and the system's own letters: nothing is fetched from elsewhere."""
    letters = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, font=letters,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"], radius_size=gr.themes.sizes.radius_md,
    )  # fmt: skip


@dataclass(frozen=True)
class StudioPage:
    """The page, the route by which it asks what its form makes, and its events that reach Python: the number of values
    that each carries."""

    blocks: gr.Blocks
    router: APIRouter
    events: dict[int, int]
    assets = Path(__file__).with_name("assets")

    def protect(self, app: FastAPI) -> None:
        """Close what of Gradio's routes the page does not use."""
        app.add_middleware(GradioDoor, events=self.events)

    def mount(self, app: FastAPI) -> FastAPI:
        """The application with the studio at ``/``."""
        app.include_router(self.router)
        mounted = gr.mount_gradio_app(
            app, self.blocks, "/", head=HEAD, theme=theme(), footer_links=[], run_history=False, ssr_mode=False,
            show_error=False, max_file_size=1, allowed_paths=[], blocked_paths=["/"], mcp_server=False, pwa=False,
            auth_dependency=lambda request: request.state.visitor.name or "local",
        )  # fmt: skip
        # Mounted pages are not checked for the files that they name until they count as launched: none may be named
        # here.
        self.blocks.has_launched = True
        # Gradio's own queue, which nothing goes through, looks for work a thousand times a second: a tenth of a core
        # where clips are rendered.
        self.blocks._queue.sleep_when_free = 0.05
        return mounted


def make_page(paths: ServerPaths) -> StudioPage:
    """The page of a server that keeps its things in ``paths``."""
    router = APIRouter()

    @router.post("/studio/check", include_in_schema=False)
    def check(request: Request, values: Annotated[list[Any], Body()]) -> dict[str, Any]:
        """What a clip of the form's values is and takes, or what is amiss with them."""
        here = Service(paths, request.state.visitor)
        try:
            fields = form.read(values)
            return here.plan_of(here.check(fields if str(fields["prompt"]).strip() else fields | {"prompt": "x"}))
        except RadialError as error:
            return {"problem": paths.without_paths(str(error))}

    def spec_of(name: str) -> ModelSpec:
        try:
            return find_model(Inputs(store_in(paths.data), LOCAL).translate({"model": name})["model"])
        except RadialError:
            return MODELS["tiny"]  # the check says what is amiss

    def listed() -> list[str]:
        own = Inputs(store_in(paths.data), LOCAL).checkpoints()
        return [*own, *(name for name, spec in MODELS.items() if spec.starts_from)]

    with gr.Blocks(title="Radial", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f'<header id="masthead"><strong>Radial</strong><span id="status"></span><span class="radial-version">'
                f"{__version__}</span></header>")  # fmt: skip
        with gr.Tabs(elem_id="pages", overflow_behavior="wrap") as pages:
            with gr.Tab("Create", id="create", elem_id="page-create"), gr.Row(elem_id="create-row"):
                with gr.Column(scale=5, min_width=320, elem_id="create-form"):
                    form = Form(spec_of, listed)
                with gr.Column(scale=6, min_width=320, elem_id="create-live"):
                    gr.HTML(_SKELETON.format(id="live"), apply_default_css=False)
                    with gr.Accordion("Attention", open=False, elem_id="attention-box"):
                        gr.HTML('<div id="plan" class="radial-pane"></div>', apply_default_css=False)
            for name in ("queue", "gallery", "tune", "models", "settings"):
                with gr.Tab(name.capitalize(), id=name, elem_id=f"page-{name}"):
                    gr.HTML(_SKELETON.format(id=name), apply_default_css=False)
        # What the page's own code hands to Python: settings to show in the form.
        inbox = gr.Textbox(visible="hidden", elem_id="inbox", show_label=False)

        def generate(request: gr.Request, keep: bool, *values: Any) -> tuple[str, Any]:
            here = Service(paths, request.request.scope["state"]["visitor"])  # type: ignore[union-attr]
            count = len(form.inputs)
            try:
                resolved = here.check(form.read(values[:count]))
                (job,) = here.add([resolved], output=form.read_output(values[count:]))
            except RadialError as error:
                return _problem_line(paths.without_paths(str(error))), gr.skip()
            said = f'<p class="radial-said" data-job="{job.id}">Queued with seed {job.request.seed}.</p>'
            return said, job.request.seed if keep else gr.skip()

        # The model and quality that the form shows the values of. Lists tell of changes, too, when they were only left.
        shown = gr.Textbox(f"tiny\n{OWN}", visible="hidden", elem_id="shown", show_label=False)

        def fill(text: Any, preset: Any) -> list[Any]:
            try:
                fields = json.loads(text)["request"]
                known = {name: fields[name] for name in GenerationRequest.model_fields if name in fields}
                prompt = str(known.get("prompt") or "")
                # Nothing is shown that is no value of a request: Gradio would fetch what looks like a file.
                request = GenerationRequest.model_validate(known | {"prompt": prompt if prompt.strip() else "x"})
                found = request.model_dump(mode="json", exclude_unset=True) | {"prompt": prompt, "model": request.model}
                return [*form.show(found), f"{request.model}\n{preset}"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return [gr.skip() for _ in (*form.inputs, shown)]

        def choose_model(model: Any, preset: Any, now: Any) -> list[Any]:
            known, _, _ = str(now).partition("\n")
            return [*form.choose_model(str(model), str(preset), keep=str(model) == known), f"{model}\n{preset}"]

        def choose_preset(preset: Any, model: Any, now: Any) -> list[Any]:
            _, _, known = str(now).partition("\n")
            values = [gr.skip() for _ in form.advanced]
            values = values if str(preset) == known else form.choose_preset(str(preset), str(model))
            return [*values, f"{model}\n{preset}"]

        # What comes is taken as it is: our own rules judge it, and Gradio's components never see it.
        private: Any = {
            "api_visibility": "private", "show_progress": "hidden", "queue": False, "preprocess": False,
        }  # fmt: skip
        # The page's own code asks what the values make: a round trip through Gradio takes twice as long.
        changes = [page.load, *(part.change for part in form.inputs)]
        gr.on(changes, None, form.inputs, None, js="(...values) => { dispatchEvent(new CustomEvent('radial-form', "
              "{ detail: window.radialForm = values })); }", trigger_mode="always_last", **private)  # fmt: skip
        for hidden, name in ((form.references, "references"), (form.loras, "loras")):
            hidden.change(None, hidden, None, js=f"(text) => window.radial?.fill('{name}', text)", **private)
        page.load(lambda: gr.update(choices=listed()), None, form.model, **private)
        form.model.change(choose_model, [form.model, form.preset, shown], [*form.inputs, shown], **private)
        form.preset.change(choose_preset, [form.preset, form.model, shown], [*form.advanced.values(), shown], **private)
        frames_at = "(times, frames) => window.radial ? window.radial.framesAt(times, frames) : frames"
        form.times.input(None, [form.times, form.num_frames], form.num_frames, js=frames_at, **private)
        # Chosen once more, so many times the length is heard again.
        gr.on(
            [form.num_frames.input, form.model.change, inbox.change], None, None, form.times, js="() => null", **private
        )
        form.dice.click(lambda: secrets.randbelow(2**31), None, form.seed, **private)
        form.generate.click(
            generate, [form.lock, *form.inputs, *form.output], [form.answer, form.seed], **private
        ).then(None, form.answer, None, js="() => window.radial?.watch()", **private)
        inbox.change(fill, [inbox, form.preset], [*form.inputs, shown], **private).then(
            lambda: gr.update(selected="create"), None, pages, **private
        )
    events = {number: len(event.inputs) for number, event in page.fns.items() if event.fn is not None}
    return StudioPage(page, router, events)


def _problem_line(message: str) -> str:
    return f'<p class="radial-problem" role="alert">{html.escape(message)}</p>'
