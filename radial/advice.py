"""What the user of a request should know before waiting for it: what it will lack, and what of it has no effect."""

from __future__ import annotations

import re

from radial.errors import some
from radial.models.checkpoint import checkpoint_folder
from radial.models.lora_settings import AdapterSettings, adapter_file
from radial.models.spec import ModelSpec
from radial.models.step_caches import LEAST_STEPS, why_none
from radial.plans.settings import DENSITY, measured_policy
from radial.request import GenerationRequest


def advise(request: GenerationRequest, spec: ModelSpec) -> tuple[str, ...]:
    """Notes on a resolved request, the weightiest last."""
    return (
        *_on_words(request, spec), *_on_events(request, spec), *_on_density(request, spec), *_on_dense_steps(request),
        *_on_policy(request), *_without_effect(request, spec), *_on_steps(request), *_on_length(request, spec),
    )  # fmt: skip


def _on_length(request: GenerationRequest, spec: ModelSpec) -> list[str]:
    notes = []
    tuned = request.tuned_settings()
    if tuned is not None and tuned.memory is not None:
        return ["the adapter is for stories made chunk by chunk, by `radial story`; a single clip is not what it does"]
    if tuned is not None:
        bundled = any(lora.path == spec.long_adapter for lora in request.loras)
        whose = "the bundled adapter for longer clips" if bundled else "the adapter"
        same, other = _held_to(request, spec, tuned)
        notes += [f"as {whose} was tuned: {', '.join(same)}"] if same else []
        notes += [f"otherwise than {whose} was tuned: {', '.join(other)}"] if other else []
    lengths = () if tuned is None else tuned.lengths
    within = bool(lengths) and spec.native_frames < request.clip_frames <= max(lengths)
    if within and tuned is not None and not tuned.covers(request.clip_frames):
        told = f"{min(lengths)} to {max(lengths)}" if len(lengths) > 1 else f"{lengths[0]}"
        notes.append(f"{request.clip_frames} frames are not among the {told} that the adapter was tuned for")
    if request.clip_frames < spec.shortest_frames:
        notes.append(
            f"{request.clip_frames} frames are fewer than the {spec.shortest_frames} of the shortest clips that "
            f"{spec.name} was trained on: expect artifacts"
        )
    if (windows := spec.windows(request.clip_frames)) > 1:
        notes.append(
            f"{request.clip_frames} frames come in {windows} windows of up to {spec.window_frames}, one after the other"
        )
        return notes
    longest = max(spec.native_frames, (tuned and tuned.target_frames) or 0)
    if request.clip_frames > longest and (tuned is not None or not request.loras):
        who = "the adapter was tuned for" if longest > spec.native_frames else f"{spec.name} was trained on"
        able = request.stretched_positions is None and spec.riflex_period is not None
        advice = "; riflex puts repetition off" if able else ""
        notes.append(
            f"{request.clip_frames} frames are beyond the {longest} that {who}: expect repetition or still scenes"
            f"{'' if tuned else ' without an adapter for longer clips'}{advice}"
        )
    return notes


def _held_to(request: GenerationRequest, spec: ModelSpec, tuned: AdapterSettings) -> tuple[list[str], list[str]]:
    """What of a request is as its adapter was tuned, and what was given otherwise; lengths beyond the model's own have
    notes of their own."""
    meant = tuned.take_over(spec, request.num_inference_steps or spec.num_inference_steps)
    words = {"attention": "dense attention" if request.attention == "dense" else ""}
    if request.attention != meant.get("attention", request.attention):
        words = {"attention": f"{request.attention} attention"}
    elif request.attention != "dense":
        words |= {"decay": f"decay {request.decay:g}", "dense_layers": f"{request.dense_layers} dense layers"}
    far_field = "" if request.far_field == "drop" else f"far field as {request.far_field}"
    words |= {
        "far_field": far_field or ("no far field" if "far_field" in meant else ""),
        "token_order": f"tokens in {request.token_order}",
        "riflex": "riflex" if request.riflex else "no riflex",
        "flow_shift": "" if request.flow_shift is None else f"flow shift {request.flow_shift:.3g}",
    }
    same = [f"{request.clip_frames} frames"] if tuned.covers(request.clip_frames) or not tuned.lengths else []
    other = [] if same or request.clip_frames > spec.native_frames else [f"{request.clip_frames} frames"]
    plain = {"far_field": "drop", "token_order": "raster", "riflex": False}  # as ever: no word of it
    for name, word in words.items():
        value = getattr(request, name)
        if value != meant.get(name, value):
            other.append(word)
        elif word and value != plain.get(name, ""):
            same.append(word)
    if tuned.num_inference_steps is not None and request.num_inference_steps == tuned.num_inference_steps:
        same.append(f"{request.num_inference_steps} steps")  # of others another note speaks
    return same, other


def _on_steps(request: GenerationRequest) -> list[str]:
    """What goes otherwise than an adapter of few steps was distilled to."""
    tuned = request.tuned_settings()
    if tuned is None or tuned.num_inference_steps is None:
        return []
    names = ("num_inference_steps", "sampler", "flow_shift", "guidance_scale")
    meant = {name: value for name in names if (value := getattr(tuned, name)) is not None}
    other = [f"{name} {_told(meant[name])}" for name in meant if getattr(request, name) != meant[name]]
    return [f"the adapter was distilled to {', '.join(other)}: at others expect worse"] if other else []


def _told(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_effect(request: GenerationRequest, spec: ModelSpec) -> list[str]:
    """What was asked for and changes nothing."""
    notes = []
    own_words = bool(request.negative_prompt) and request.negative_prompt != spec.negative_prompt
    true_scale = request.true_cfg_scale or 1.0
    if own_words and spec.guidance_is_embedded and true_scale <= 1:
        notes.append(
            f"the negative prompt has no effect: guidance_scale is a number that {spec.name} was trained to follow; "
            "true_cfg_scale 6 would use it, in twice the time"
        )
    elif own_words and not spec.guidance_is_embedded and (request.guidance_scale or 0) <= 1:
        notes.append(f"the negative prompt has no effect at guidance {request.guidance_scale:g}: above 1 it has")
    if request.true_cfg_scale is not None and not spec.guidance_is_embedded:
        notes.append(f"true_cfg_scale has no effect on {spec.name}, whose guidance_scale is that already")
    if len(request.guided_steps) < (request.num_inference_steps or 1) and not request.is_guided(spec):
        notes.append("guidance_start and guidance_end have no effect: no step makes a second pass for guidance")
    if request.far_field != "drop" and request.attention == "dense":
        notes.append(f"far_field {request.far_field} has no effect: dense attention leaves nothing out")
    elif request.far_field != "drop" and request.dense_layers == 0:
        notes.append(f"far_field {request.far_field} is less exact in the first layer than none: dense_layers 1 helps")
    if request.batched_guidance and not request.is_guided(spec):
        notes.append("batched_guidance has no effect: no step makes a second pass for guidance")
    if request.cache == "auto" and spec.step_cache("auto", request.task, LEAST_STEPS) is None:
        pipeline = spec.pipeline_for(request.task)
        notes.append(f"cache auto does without for {spec.name}: {why_none(pipeline)}")
    if request.guidance_scale_2 is not None and not spec.has_two_transformers:
        notes.append(f"guidance_scale_2 has no effect: {spec.name} has one transformer")
    return notes


def _on_dense_steps(request: GenerationRequest) -> list[str]:
    early, every = request.early_density or 1.0, request.dense_every or 0
    notes: list[str] = []
    if request.policy is not None:
        return notes
    if request.dense_above and request.attention == "dense":
        notes.append(f"dense_above {request.dense_above:g} has no effect: dense attention leaves nothing out")
    if early < 1 and request.attention != "adaptive":
        notes.append(f"early_density {early:g} has no effect on {request.attention} attention: adaptive has one")
    elif early < 1 and not request.dense_steps:
        notes.append(f"early_density {early:g} has no effect: dense_steps says of how many steps it is")
    if every and request.attention == "dense":
        notes.append(f"dense_every {every} has no effect: dense attention has no other steps")
    elif every > (request.num_inference_steps or 1) - (request.dense_steps or 0):
        notes.append(f"dense_every {every} has no effect: fewer steps than that follow the leading ones")
    return notes


def _on_policy(request: GenerationRequest) -> list[str]:
    """Adapters other than a policy was measured with."""
    if request.policy is None:
        return []
    about = measured_policy(request.policy).about
    measured, ours = [lora["name"] for lora in about.loras], [adapter_file(lora.path).name for lora in request.loras]
    if sorted(measured) == sorted(ours):
        return []
    with_ = ", ".join(measured) or "no adapter"
    return [f"the policy was measured with {with_}, not with {', '.join(ours) or 'none'}: layers may count otherwise"]


def _on_density(request: GenerationRequest, spec: ModelSpec) -> list[str]:
    if request.policy is not None:
        return []
    density = DENSITY if request.density is None else request.density
    if request.attention != "adaptive":
        told = f"density {density:g} has no effect on {request.attention} attention: adaptive has one"
        return [told] if density != DENSITY else []
    sinks = (request.sink_frames or 0) / request.grid(spec).frames
    if sinks <= density / 2:
        return []
    return [
        f"density {density:g} has room for no more than the {request.sink_frames} sink frames, which are {sinks:.0%} "
        "of the clip: more is computed, or sink_frames can be fewer"
    ]


def _on_events(request: GenerationRequest, spec: ModelSpec) -> list[str]:
    """More events, one after the other, than a clip of moving shapes has time for: each takes the native length."""
    if not _draws_shapes(spec):
        return []
    chains = [chain for prompt in request.prompts for chain in re.split(r" (?:and|while) ", prompt.lower())]
    events = len(request.prompts) * (1 + max(len(re.findall(r"\bthen\b", chain)) for chain in chains))
    unit = spec.native_frames - spec.first_frame
    room = max(1, (request.clip_frames - spec.first_frame) // unit)
    if events <= room:
        return []
    needed = events * unit + spec.first_frame
    return [
        f"the prompt tells {events} events one after the other, and {request.clip_frames} frames hold {room}: each "
        f"takes {spec.native_frames}; {needed} frames hold all"
    ]


def _draws_shapes(spec: ModelSpec) -> bool:
    """Whether a model draws the moving shapes of the bundled one, whose words its checkpoint lists."""
    folder = checkpoint_folder(spec)
    return folder is not None and (folder / "words.txt").is_file()


def _on_words(request: GenerationRequest, spec: ModelSpec) -> list[str]:
    """Words that a model does not know, where its checkpoint lists those that it knows."""
    folder = checkpoint_folder(spec)
    if folder is None or not _draws_shapes(spec):
        return []
    known = set((folder / "words.txt").read_text(encoding="utf-8").split())
    words = dict.fromkeys(re.findall(r"[^\W\d_]+(?:[-'][^\W\d_]+)*", " ".join(request.prompts).lower()))
    unknown = [word for word in words if word not in known]
    if not unknown:
        return []
    return [
        f"{spec.name} draws moving shapes, and does not know: {some(unknown, most=8)}; it knows words "
        'like "a large red star moves from left to right on a striped background"'
    ]
