"""Clips longer than the native ones, in a world at its own speed: every way to them in one table: ``python
benchmarks/longer.py --out FOLDER``.

Stages, each kept in the output folder so that a later call goes on: ``base`` (the bundled model on native prompts),
``data`` (a cache of stories of several lengths), ``train`` (adapters with radial and with dense attention on it, for
the same steps), ``table`` (held-out stories: untuned, stretched positions, windows, extension, tuned, in pairs).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radial.generation.sampler import replaced, scheduler_for
from radial.loading.load import LoadedModel, load
from radial.request import GenerationRequest, make_request
from radial_finetune.data.clips import Frames
from radial_finetune.data.pictures import contact_sheet
from radial_finetune.evaluate import rivals, shapes, stories

TUNED = {"radial": {"attention": "radial", "block_size": 64, "skip_width": 64}, "dense": {"attention": "dense"}}
NATIVE, UNIT = 33, 32
NATIVE_EVENTS = "native events"
IN_TIME = " in time"  # behind a way's name: each event's words at its time, in one pass
MARGIN_NATIVE, MARGIN_DENSE = 0.05, 0.03  # named before anything was measured
UNTUNED = ("untuned", "riflex", "interpolate", "ntk", "yarn", "ultravico", "windows", "extend", "shown slower")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["base", "data", "train", "table"])
    parser.add_argument("--clips", nargs="+", default=["33=512", "65=768", "97=768", "129=2304", "193=320", "257=320"])
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--train-seconds", type=float, default=270)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument(
        "--shift", type=float, default=8.0, help="of the noise levels: longer clips are decided nearer to noise"
    )
    parser.add_argument("--init-adapter", help="that training begins from")
    parser.add_argument("--trial-steps", type=int, default=30, help="that tell how long one takes")
    parser.add_argument("--train-steps", type=int, help="in place of as many as the time allows")
    parser.add_argument("--batch-tokens", type=int, default=101_376)
    parser.add_argument("--kinds", nargs="+", default=list(TUNED), help="adapters that are tuned")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the clips")
    parser.add_argument("--units", type=int, nargs="+", default=[4, 2, 3, 6, 8])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--ways", nargs="+", default=["radial", "dense", *UNTUNED])
    parser.add_argument("--ours", default="radial", help="the way that all others are compared with")
    parser.add_argument("--adapters", type=Path, help="folder of adapters; those of the train stage when left out")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    run_stages(parser.parse_args(), {"base": base, "data": data, "train": train, "table": table})


def run_stages(options: argparse.Namespace, stages: dict[str, Callable[[argparse.Namespace], None]]) -> None:
    """Those of the stages that are asked for, and how long each took."""
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        started = time.monotonic()
        stages[stage](options)
        print(f"[{stage}: {time.monotonic() - started:.0f} s]", flush=True)


def base(options: argparse.Namespace) -> None:
    """The bundled model as it is on the prompts that it was trained for."""
    members = shapes.held_out(options.prompts)
    with shapes.scoring() as score:
        for kind in ("dense", "radial"):
            request = make_request(prompt="x", attention=kind, device=options.device, dtype=options.dtype, seed=0,
                                   num_inference_steps=options.steps).resolve()  # fmt: skip
            result = shapes.score_model(request, load(request), members, score, (0,), 64)
            print(kind, {name: round(result.interval(name)[0], 4) for name in shapes.MEASURES}, flush=True)


def data(options: argparse.Namespace) -> None:
    run("radial_finetune.pretrain.story_data", "--out", options.out / "cache", "--device", options.device, "--dtype",
        options.dtype, "--seed", options.data_seed, "--clips", *options.clips)  # fmt: skip


def train(options: argparse.Namespace) -> None:
    """Adapters of every kind on the same data, side by side, for as many steps as the time allows both."""
    common = {
        "data": str(options.out / "cache"), "model": "tiny", "rank": 64, "layers": "all",
        "batch_tokens": options.batch_tokens, "learning_rate": options.learning_rate, "shift": options.shift,
        "lr_scheduler": "cosine", "lr_warmup_steps": 50, "weight_decay": 0.0,
        "ema_decay": 0.99, "timestep_sampling": "uniform", "held_out": 0, "validate_every": 0,
        "gradient_checkpointing": False, "device": options.device, "dtype": options.dtype, "trackers": [],
        "dense_layers": 2, "checkpoint_every": 300,
    }  # fmt: skip
    if options.init_adapter:
        common["init_adapter"] = options.init_adapter
    kinds = {kind: common | TUNED[kind] for kind in options.kinds}
    steps = options.train_steps or steps_within(options, kinds)
    train_all(options.out / "runs", {kind: one | {"steps": steps} for kind, one in kinds.items()})
    for kind in kinds:
        log = read_log(options.out / "runs" / kind)
        tail = [line["loss"] for line in log[-100:] if line["step"]]
        print(kind, f"{sum(line['seconds'] for line in log):.0f} s, loss {statistics.mean(tail):.4f}", flush=True)


def steps_within(options: argparse.Namespace, kinds: dict[str, dict[str, Any]]) -> int:
    """How many steps of all kinds, side by side, the time allows, by a trial."""
    train_all(options.out / "trial", {kind: one | {"steps": options.trial_steps} for kind, one in kinds.items()})
    logs = {kind: read_log(options.out / "trial" / kind) for kind in kinds}
    paces = {kind: statistics.fmean(line["seconds"] for line in log[len(log) // 3 :]) for kind, log in logs.items()}
    steps = max(1, int(options.train_seconds / max(paces.values())))
    print({kind: f"{1000 * pace:.0f} ms a step" for kind, pace in paces.items()}, steps, "steps", flush=True)
    return steps


def train_all(folder: Path, runs: dict[str, dict[str, Any]]) -> None:
    working = []
    for name, config in runs.items():
        output = folder / name
        if (output / "adapter.safetensors").exists():
            continue
        output.mkdir(parents=True, exist_ok=True)
        lines = (config | {"output": str(output)}).items()
        (output / "run.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines))
        command = [sys.executable, "-m", "radial_app", "finetune", "run", str(output / "run.toml"), "--resume"]
        log = (output / "log.txt").open("w")
        environment = os.environ | {"OMP_NUM_THREADS": "2"}
        working.append((output, subprocess.Popen(command, stdout=log, stderr=log, env=environment)))
    for output, process in working:
        if process.wait():
            raise SystemExit(f"{output} failed: {(output / 'log.txt').read_text()[-3000:]}")


def table(options: argparse.Namespace) -> None:
    """Scores of every way at every length; what is measured is kept as it comes."""
    folder = options.adapters or options.out / "runs"
    kept = options.out / "values.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    base_model = load(request_for(options, NATIVE, {"attention": "dense", "long_adapter": False}))
    models: dict[str, LoadedModel] = {}
    with stories.scoring() as score:
        for units in options.units:
            members = stories.held_out_stories(options.prompts, units)
            sheet = []
            for way in (NATIVE_EVENTS, *options.ways):
                key = f"{units} {way}"
                if key in found and len(found[key]["seeds"]) >= len(options.seeds):
                    continue
                started = time.monotonic()
                tuned = way.removesuffix(IN_TIME)
                if tuned in TUNED:
                    fields = {"loras": [{"path": str(folder / tuned / "adapter.safetensors")}]}
                    if tuned not in models:
                        models[tuned] = load(request_for(options, NATIVE, fields))
                    clips = [
                        make_clips(options, models[tuned], fields, members, units, seed, in_time=tuned != way)
                        for seed in options.seeds
                    ]
                elif way == NATIVE_EVENTS:
                    clips = [native(options, base_model, members, seed) for seed in options.seeds]
                else:
                    clips = [untuned(options, base_model, way, members, units, seed) for seed in options.seeds]
                spent = (time.monotonic() - started) / len(options.seeds)
                values = judge(way, clips, members, score)
                if way != NATIVE_EVENTS:
                    places = range(0, len(members), max(1, len(members) // 4))
                    sheet += [(f"{way}: {members[place].prompt}", clips[0][place]) for place in places]
                found[key] = {"values": {name: list(map(float, v)) for name, v in values.items()}, "seconds": spent,
                              "seeds": options.seeds}  # fmt: skip
                kept.write_text(json.dumps(found))
                means = {name: round(100 * float(np.nanmean(v)), 1) for name, v in values.items()}
                print(f"{UNIT * units + 1} frames, {way}: {means}, {spent:.1f} s", flush=True)
            if sheet:
                contact_sheet(sheet, columns=2, count=9).save(options.out / f"sheet-{units}.png", optimize=True)
    (options.out / "table.md").write_text(to_markdown(found, options.ours))
    print(to_markdown(found, options.ours))


def judge(way: str, clips: list[list[Frames]], members: list[stories.Member], score: stories.Scorer) -> stories.Values:
    """Values of a way's clips, by seed."""
    if way == NATIVE_EVENTS:
        scenes = [scene for member in members for scene, _ in member.events if scene is not None]
        counts = [sum(scene is not None for scene, _ in member.events) for member in members]
        single = [stories.story_of_event(scene) for scene in scenes]
        by_seed = [stories.native_values(score(seed, single), counts) for seed in clips]
        return {name: np.mean([values[name] for values in by_seed], axis=0) for name in stories.MEASURES}
    scores = [score(seed, [member.story for member in members]) for seed in clips]
    print("  faults", dict(Counter(one.fault for seed in scores for one in seed)), flush=True)
    return stories.values_of(scores)


def to_markdown(found: dict[str, Any], ours: str) -> str:
    """The table, and one way against each other."""
    lines = []
    for units in sorted({int(key.split()[0]) for key in found}):
        rows = {key.split(" ", 1)[1]: one for key, one in found.items() if key.startswith(f"{units} ")}
        head = ["way", *stories.MEASURES, "seconds", f"{ours} minus it, prompt", f"{ours} minus it, order"]
        lines += [f"\n{UNIT * units + 1} frames ({units}x)\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for way, one in rows.items():
            cells = [f"{100 * np.nanmean(one['values'][name]):.1f}" for name in stories.MEASURES]
            against = ["", ""]
            if ours in rows and way != ours:
                margin = MARGIN_NATIVE if way == NATIVE_EVENTS else MARGIN_DENSE
                for place, name in enumerate(("prompt", "order")):
                    one_P, other_P = (np.array(rows[w]["values"][name]) for w in (ours, way))
                    both = np.isfinite(one_P) & np.isfinite(other_P)
                    against[place] = str(stories.compare(one_P[both], other_P[both], margin))
            lines.append(f"| {way} | {' | '.join(cells)} | {one['seconds']:.1f} | {' | '.join(against)} |")
    return "\n".join(lines) + "\n"


def request_for(options: argparse.Namespace, num_frames: int, fields: dict[str, Any]) -> GenerationRequest:
    return make_request(prompt="x", model="tiny", num_frames=num_frames, device=options.device, dtype=options.dtype,
                        seed=0, num_inference_steps=options.steps, **fields).resolve()  # fmt: skip


def make_clips(
    options: argparse.Namespace, model: LoadedModel, fields: dict[str, Any], members: list[stories.Member], units: int,
    seed: int, *, in_time: bool = False,
) -> list[Frames]:  # fmt: skip
    request = request_for(options, UNIT * units + 1, fields)
    prompts = [member.timed if in_time else member.prompt for member in members]
    return shapes.generate_clips(request, model, prompts, max(8, 256 // units), 10_000 * seed)


def native(options: argparse.Namespace, model: LoadedModel, members: list[stories.Member], seed: int) -> list[Frames]:
    prompts = [text for member in members for scene, text in member.events if scene is not None]
    request = request_for(options, NATIVE, {"attention": "dense", "long_adapter": False})
    return shapes.generate_clips(request, model, prompts, 128, 10_000 * seed)


@torch.inference_mode()
def untuned(
    options: argparse.Namespace, model: LoadedModel, way: str, members: list[stories.Member], units: int, seed: int
) -> list[Frames]:  # fmt: skip
    """Clips of a way without any tuning."""
    frames = UNIT * units + 1
    fields = {"attention": "dense", "long_adapter": False}
    if (kind := way.removesuffix(IN_TIME)) in ("untuned", "riflex", "interpolate", "ntk", "yarn"):
        positions = {} if kind == "untuned" else {"positions": kind}
        return make_clips(options, model, fields | positions, members, units, seed, in_time=kind != way)
    if way == "ultravico":
        with rivals.decaying(model.pipe.transformer):
            return make_clips(options, model, fields, members, units, seed)
    if way == "shown slower":
        request = request_for(options, NATIVE, fields)
        clips = shapes.generate_clips(request, model, [m.prompt for m in members], 64, 10_000 * seed)
        return [rivals.shown_slower(clip, frames) for clip in clips]
    request = request_for(options, NATIVE if way == "extend" else frames, fields)
    made: list[Frames] = []
    size = max(8, 256 // units)
    for start in range(0, len(members), size):
        part = members[start : start + size]
        seeds = [10_000 * seed + start + number for number in range(len(part))]
        arguments = {
            "negative_prompt": [request.negative_prompt or ""] * len(part), "height": request.height,
            "width": request.width, "num_frames": request.num_frames, "num_inference_steps": options.steps,
            "guidance_scale": request.guidance_scale, "max_sequence_length": model.spec.max_sequence_length,
        }  # fmt: skip
        with replaced(model.pipe, scheduler=scheduler_for(model.pipe, request.sampler, request.flow_shift)):
            if way == "extend":
                prompts = [[member.events[unit][1] for member in part] for unit in range(units)]
                made += rivals.extend(model.pipe, prompts, arguments, seeds)
            else:
                made += in_windows(model, part, arguments, seeds, units)
    return made


def in_windows(
    model: LoadedModel, part: list[stories.Member], arguments: dict[str, Any], seeds: list[int], units: int
) -> list[Frames]:  # fmt: skip
    """Windows of the native length over noise that repeats itself; each window has the words of its own event."""
    pipe, latent = model.pipe, 8 * units + 1

    def encode(texts: list[str]) -> torch.Tensor:
        length = arguments["max_sequence_length"]
        text, _ = pipe.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length, device=device
        )
        return text.to(pipe.transformer.dtype)

    device = pipe.transformer.device
    whole = encode([member.prompt for member in part])
    middles = [min(units - 1, (start + 4) // 8) for start in rivals.window_starts(latent)]
    by_unit = [encode([member.events[unit][1] for member in part]) for unit in range(units)]
    negative = encode(arguments["negative_prompt"])
    noise = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        size = (1, pipe.vae.config.z_dim, latent, arguments["height"] // 8, arguments["width"] // 8)
        noise.append(rivals.free_noise(torch.randn(size, generator=generator), generator))
    told = {name: value for name, value in arguments.items() if name not in ("negative_prompt", "max_sequence_length")}
    with rivals.windows(pipe.transformer, {whole.data_ptr(): [by_unit[unit] for unit in middles]}):
        clips = pipe(prompt_embeds=whole, negative_prompt_embeds=negative, latents=torch.cat(noise).to(device),
                     output_type="np", **told).frames  # fmt: skip
    return [(clip * 255).round().clip(0, 255).astype(np.uint8) for clip in clips]


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run(module: str, *arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
