"""The form of a request: Gradio components for its fields, and the way from their values to fields and back.

A field left empty takes the model's own value, which its placeholder shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from radial.errors import RequestError
from radial.models.spec import ModelSpec
from radial.models.table import MODELS, PRESETS, find_preset
from radial.request import MAX_SEED, GenerationRequest
from radial_app.jobs.job import DEFAULT_NAME, Output, make_output

LENGTHS = (1, 2, 3, 4)  # times the native length
DRAFT = "draft"
OWN = "standard"
_REFERENCES = ("image", "last_image", "extend")
_PRECISIONS = [("full", "full"), ("8 bit, faster", "eight_bit"), ("8-bit weights", "eight_bit_weights")]
_FORMATS = ["mp4, h264", "mp4, h265", "mp4, av1", "webm, vp9", "webm, av1", "gif", "png"]


class Form:
    """The components of a request's fields; made inside a ``gr.Blocks``.

    Args:
        spec_of: a model by the name that it has here.
        listed: the names to choose from.
    """

    def __init__(self, spec_of: Callable[[str], ModelSpec], listed: Callable[[], list[str]]) -> None:
        self._spec = spec_of
        self._listed = listed
        spec = MODELS["tiny"]
        self.prompt = gr.Textbox(
            label="Prompt", lines=4, max_lines=12, autofocus=True, elem_id="prompt", max_length=20_000,
            placeholder="What the clip shows, for example: a large red star moves from left to right",
        )  # fmt: skip
        gr.HTML('<div id="estimate-line"></div>', apply_default_css=False)
        self.generate = gr.Button("Generate", variant="primary", elem_id="generate", size="lg")
        self.answer = gr.HTML(elem_id="answer", apply_default_css=False)
        with gr.Row():
            self.model = gr.Dropdown(
                [name for name, one in MODELS.items() if one.starts_from], value="tiny", label="Model",
                elem_id="model", info=spec.summary, scale=3, min_width=200,
            )  # fmt: skip
            self.preset = gr.Dropdown(
                [OWN, DRAFT, *PRESETS], value=OWN, label="Quality", info="steps and guidance", elem_id="preset",
                scale=2, min_width=120,
            )  # fmt: skip
        with gr.Row(elem_id="length-row"):
            low, high, step = _slider(spec)
            self.num_frames = gr.Slider(
                low, high, spec.num_frames, step=step, label="Length in frames", elem_id="num_frames", scale=3,
                min_width=200, buttons=[],
            )  # fmt: skip
            self.times = gr.Radio(
                [f"{n}x" for n in LENGTHS], value=None, label="of the native length", elem_id="times", scale=2,
                min_width=200,
            )  # fmt: skip
        with gr.Row(elem_id="size-row"):
            self.size = gr.Dropdown(
                _sizes(spec), value=f"{spec.width}x{spec.height}", label="Size", allow_custom_value=True,
                elem_id="size", min_width=120, scale=2,
            )  # fmt: skip
            self.num_videos = gr.Number(
                1, label="Videos", precision=0, minimum=1, maximum=1000, elem_id="num_videos", min_width=70, scale=1
            )
            self.seed = gr.Number(
                -1, label="Seed (-1 draws one)", precision=0, minimum=-1, maximum=MAX_SEED, elem_id="seed",
                min_width=120, scale=2,
            )  # fmt: skip
            with gr.Column(min_width=84, scale=1, elem_id="seed-column"):
                self.dice = gr.Button("Draw", size="sm", elem_id="dice", min_width=60)
                self.lock = gr.Checkbox(label="Keep", elem_id="lock", min_width=60, container=False)
        gr.HTML('<div id="references"></div>', apply_default_css=False)
        self.references = gr.Textbox("{}", visible="hidden", elem_id="references-value", show_label=False)
        gr.HTML('<div id="loras"></div>', apply_default_css=False)
        self.loras = gr.Textbox("[]", visible="hidden", elem_id="loras-value", show_label=False)
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self.advanced = self._advanced(spec)
        with gr.Accordion("Output", open=False, elem_id="output"), gr.Row():
            self.format = gr.Dropdown(_FORMATS, value=_FORMATS[0], label="File", elem_id="format")
            self.crf = gr.Number(label="Quality (CRF)", info="lower is better and larger", precision=0, elem_id="crf")
            self.name = gr.Textbox(DEFAULT_NAME, label="Name", info="a template", elem_id="name", max_length=500)
            self.metadata = gr.Checkbox(True, label="Keep the settings in the file", elem_id="metadata")
        self.fixed = [
            self.prompt, self.model, self.num_frames, self.size, self.num_videos, self.seed, self.references,
            self.loras,
        ]  # fmt: skip
        self.output = [self.format, self.crf, self.name, self.metadata]

    def _advanced(self, spec: ModelSpec) -> dict[str, Any]:
        """Components of all other fields."""
        parts: dict[str, Any] = {}

        def number(name: str, label: str, *, whole: bool = True) -> None:
            least, most = _limits(name)
            parts[name] = gr.Number(
                None, label=label, info=f"{least:g} to {most:g}", precision=0 if whole else None, elem_id=name,
                min_width=120, minimum=least, maximum=most, placeholder=_default(spec, name),
            )  # fmt: skip

        def choice(name: str, label: str, choices: Sequence[Any], value: Any, **more: Any) -> None:
            parts[name] = gr.Dropdown(choices, value=value, label=label, elem_id=name, min_width=120, **more)

        parts["negative_prompt"] = gr.Textbox(
            label="Negative prompt", lines=2, elem_id="negative_prompt", max_length=20_000,
            placeholder=_default(spec, "negative_prompt"),
        )  # fmt: skip
        with gr.Row():
            number("num_inference_steps", "Steps")
            number("guidance_scale", "Guidance", whole=False)
            number("guidance_scale_2", "Guidance, second expert", whole=False)
            number("true_cfg_scale", "True guidance", whole=False)
            number("fps", "Frames a second")
        with gr.Row():
            choice("sampler", "Sampler", ["model", "euler", "lcm", "unipc"], "model")
            number("flow_shift", "Flow shift", whole=False)
            choice("image_fit", "Images of another shape", ["crop", "pad", "stretch"], "crop")
            choice("image_ground", "Under see-through images", ["black", "white", "grey"], "black")
            choice("riflex", "RIFLEx", [("as tuned", ""), "on", "off"], "")
        with gr.Row():
            choice("attention", "Attention", ["radial", "dense", ("as tuned", "")], "")
            number("decay", "Decay", whole=False)
            choice("block_size", "Block size", [("model's own", 0), 16, 32, 64, 128, 256], 0)
        with gr.Row():
            number("dense_layers", "Dense layers")
            number("dense_steps", "Dense steps")
            number("dense_last_steps", "Dense last steps")
        with gr.Row():
            parts["device"] = gr.Textbox("auto", label="Device", info="auto, cpu, cuda, cuda:N", elem_id="device",
                                         max_length=20, min_width=120)  # fmt: skip
            memories = ["auto", "full", "balanced", "low", "lowest"]
            choice("memory", "Memory", memories, "auto", info="how much lies on the GPU")
            choice("precision", "Precision", _PRECISIONS, "full")
            choice("dtype", "Numbers", ["auto", "float32", "bfloat16", "float16"], "auto")
        with gr.Row():
            parts["snap"] = gr.Checkbox(label="Take the nearest size that can be made", elem_id="snap", min_width=120)
            parts["long_adapter"] = gr.Checkbox(True, label="Use the model's adapter for longer clips",
                                                elem_id="long_adapter", min_width=120)  # fmt: skip
        return parts

    @property
    def inputs(self) -> list[Any]:
        """All components that a request depends on."""
        return [*self.fixed, *self.advanced.values()]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The fields of a request, from the values of :attr:`inputs`, whatever those are: its rules judge them.

        Raises:
            RequestError: there are too many or too few, or the size is none.
        """
        if len(values) != len(self.inputs):
            raise RequestError("this page is of another version of radial: load it again")
        prompt, model, num_frames, size, num_videos, seed, references, loras, *advanced = values
        fields: dict[str, Any] = {"prompt": prompt or "", "model": model, "num_frames": num_frames}
        width, _, height = str(size or "").lower().partition("x")
        fields |= {"width": _whole(width, "width"), "height": _whole(height, "height")}
        fields |= {"num_videos": num_videos or 1, "seed": -1 if seed is None else seed}
        fields |= {name: value for name, value in _parsed(references, {}).items() if name in _REFERENCES and value}
        fields["loras"] = [lora for lora in _parsed(loras, []) if lora.get("path")]
        for name, value in zip(self.advanced, advanced, strict=True):
            if name == "riflex":
                value = {"on": True, "off": False}.get(value)
            if name == "block_size":
                value = value or None
            if value not in (None, ""):
                fields[name] = value
        return fields

    def read_output(self, values: Sequence[Any]) -> Output:
        """Where a request's videos go, from the values of :attr:`output`.

        Raises:
            RequestError: a value breaks a rule.
        """
        if len(values) != len(self.output):
            raise RequestError("this page is of another version of radial: load it again")
        kind, crf, name, metadata = values
        video_format, _, codec = str(kind).partition(", ")
        encoding = {"format": video_format, "codec": codec or None, "crf": crf, "metadata": metadata}
        return make_output(name=name or DEFAULT_NAME, encoding=encoding)

    def show(self, fields: dict[str, Any]) -> list[Any]:
        """Updates of :attr:`inputs` that show a request."""
        spec = self._spec(fields["model"])
        references = {name: fields[name] for name in _REFERENCES if fields.get(name)}
        frames = fields.get("num_frames") or spec.num_frames
        low, high, step = _slider(spec)
        size = f"{fields.get('width') or spec.width}x{fields.get('height') or spec.height}"
        fixed = [
            fields["prompt"],
            gr.update(choices=list(dict.fromkeys([*self._listed(), fields["model"]])), value=fields["model"]),
            gr.update(minimum=low, maximum=max(high, frames), step=step, value=frames),
            gr.update(choices=_sizes(spec), value=size), fields.get("num_videos", 1), fields.get("seed", -1),
            json.dumps(references), json.dumps([] if _only_long_adapter(fields, spec) else fields.get("loras", [])),
        ]  # fmt: skip
        advanced = []
        for name in self.advanced:
            value = fields.get(name)
            if name == "riflex":
                value = {True: "on", False: "off"}.get(value, "")  # type: ignore[arg-type]
            elif name == "attention":
                value = value or ""
            elif name == "block_size":
                value = value or 0
            elif value is None and GenerationRequest.model_fields[name].default is not None:
                value = GenerationRequest.model_fields[name].default
            advanced.append(value)
        return [*fixed, *advanced]

    def choose_model(self, model: str, preset: str, *, keep: bool = False) -> list[Any]:
        """Updates of :attr:`inputs` for another model: its sizes, its own values as placeholders, and those of a
        quality; only what describes the model where the values are to be kept."""
        spec = self._spec(model)
        updates: dict[str, Any] = {"model": gr.update(info=spec.summary)}
        if not keep:
            low, high, step = _slider(spec)
            updates["num_frames"] = gr.update(minimum=low, maximum=high, step=step, value=spec.num_frames)
            updates["size"] = gr.update(choices=_sizes(spec), value=f"{spec.width}x{spec.height}")
        values = {} if keep else self._own_values() | self._values_of(preset, spec)
        for name, part in self.advanced.items():
            update = {"value": values[name]} if name in values else {}
            if isinstance(part, gr.Number) or name == "negative_prompt":
                update["placeholder"] = _default(spec, name)
            updates[name] = gr.update(**update) if update else gr.skip()
        return [updates.get(str(part.elem_id), gr.skip()) for part in self.inputs]

    def choose_preset(self, preset: str, model: str) -> list[Any]:
        """Updates of the advanced components for a quality."""
        values = self._values_of(preset, self._spec(model))
        return [values.get(name, gr.skip()) for name in self.advanced]

    def _own_values(self) -> dict[str, Any]:
        """A model's own numbers: those of empty fields."""
        return {name: None for name, part in self.advanced.items() if isinstance(part, gr.Number)}

    def _values_of(self, preset: str, spec: ModelSpec) -> dict[str, Any]:
        """What a quality sets."""
        own = {"num_inference_steps": None, "guidance_scale": None, "sampler": "model", "flow_shift": None}
        if preset == DRAFT:
            return own | {"num_inference_steps": max(4, round(spec.num_inference_steps / 3))}
        return own | (find_preset(preset, spec) if preset in PRESETS else {})


def frames_at(spec: ModelSpec, times: int) -> int:
    """The length in frames nearest to so many times the native one, counted in latent frames."""
    stride, first = spec.stride[0], spec.first_frame
    return (spec.native_frames - first) // stride * times * stride + first


def _limits(name: str) -> tuple[float, float]:
    """What a number may be, as a request's schema says."""
    schema = GenerationRequest.model_json_schema()["properties"][name]["anyOf"][0]
    return schema.get("minimum", schema.get("exclusiveMinimum")), schema["maximum"]


def _slider(spec: ModelSpec) -> tuple[int, int, int]:
    """Least, most and step of a length."""
    stride, first = spec.stride[0], spec.first_frame
    return first + (stride if first == 0 else 0), frames_at(spec, LENGTHS[-1]), stride


def _sizes(spec: ModelSpec) -> list[str]:
    """Sizes to choose from: the model's own, upright, square, and smaller."""
    _, down, across = spec.stride
    sides = {(spec.width, spec.height), (spec.height, spec.width)}
    side = (spec.width * spec.height) ** 0.5
    sides.add((round(side / across) * across, round(side / down) * down))
    for share in (0.75, 0.5):
        smaller = (spec.width * share / across, spec.height * share / down)
        sides.add((max(1, round(smaller[0])) * across, max(1, round(smaller[1])) * down))
    legal = [(w, h) for w, h in sides if w % across == 0 and h % down == 0 and w >= 16 and h >= 16]
    return [f"{w}x{h}" for w, h in sorted(legal, key=lambda s: (-s[0] * s[1], -s[0]))]


def _default(spec: ModelSpec, name: str) -> str:
    """What a model does where a field is left empty."""
    if name == "negative_prompt":
        return spec.negative_prompt or "What the clip should not show"
    pattern, schedule = spec.preset(spec.num_frames, spec.num_inference_steps)
    known = {
        "num_inference_steps": spec.num_inference_steps, "guidance_scale": spec.guidance_scale,
        "guidance_scale_2": spec.guidance_scale_2, "fps": spec.fps, "decay": pattern.decay,
        "dense_layers": schedule.dense_layers, "dense_steps": schedule.dense_steps,
        "dense_last_steps": schedule.dense_last_steps,
    }  # fmt: skip
    value = known.get(name)
    return f"{value:g}" if value is not None else "model's own"


def _whole(text: str, name: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise RequestError(f"size must be WIDTHxHEIGHT, such as 832x480: {name} is {text.strip()!r}") from None


def _parsed(text: str | None, empty: Any) -> Any:
    """A hidden field's JSON, of the expected kind."""
    try:
        found = json.loads(text or "")
    except (ValueError, TypeError, RecursionError):
        return empty
    if isinstance(empty, list):
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else empty
    return found if isinstance(found, dict) else empty


def _only_long_adapter(fields: dict[str, Any], spec: ModelSpec) -> bool:
    """Whether the adapters are what the model would take by itself."""
    beyond = (fields.get("num_frames") or spec.num_frames) > spec.native_frames
    taken = [{"path": spec.long_adapter, "weight": 1.0}]
    return beyond and fields.get("long_adapter", True) and fields.get("loras") == taken
