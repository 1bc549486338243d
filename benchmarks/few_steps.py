"""Clips in few steps from the bundled model, by an adapter that is distilled to them: ``python benchmarks/few_steps.py
--out FOLDER``.

Stages, each kept in the output folder so that a later call goes on: ``data`` (a cache of native clips), ``train``
(adapters with radial and with dense attention on it, side by side, for the same steps), ``table`` (held-out prompts:
the model in all its steps with guidance, in few with and without, by the preset for few, and with the adapter; in
pairs).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longer import read_log, run, run_stages, steps_within, train_all
from safetensors.torch import load_file

from radial.loading.load import load
from radial.models.lora_settings import read_adapter_settings
from radial.models.table import PRESETS
from radial.request import make_request
from radial.video.fidelity import fidelity
from radial_finetune.adapter.file import write_adapter
from radial_finetune.data.pictures import contact_sheet
from radial_finetune.evaluate import shapes
from radial_finetune.evaluate.stories import compare
from radial_finetune.training.exports import read_made

KINDS = ("radial", "dense")
NATIVE = 33
TEACHER = "20 steps, guidance 3"
MEASURES = ("prompt", "colour", "shape", "motion", "whole motion", "persistence", "repetition")
MARGIN = 0.05  # of a difference that does not matter, named before anything was measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["data", "train", "table"])
    parser.add_argument("--clips", type=int, default=3072, help="to train on")
    parser.add_argument("--held-out", type=int, default=0, help="of them, whose loss is measured")
    parser.add_argument("--few", type=int, default=4, help="steps to distil to")
    parser.add_argument("--teacher-steps", type=int, default=5, help="of the model, for each of them")
    parser.add_argument("--train-seconds", type=float, default=240, help="for all adapters, side by side")
    parser.add_argument("--train-steps", type=int, help="in place of seconds")
    parser.add_argument("--trial-steps", type=int, default=20, help="that tell how long one takes")
    parser.add_argument("--batch-tokens", type=int, default=33_792)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", default="blocks")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--prompts", type=int, default=128, help="half of them with one figure, half with two")
    parser.add_argument("--batch-size", type=int, default=64, help="clips that are made at a time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    run_stages(parser.parse_args(), {"data": data, "train": train, "table": table})


def data(options: argparse.Namespace) -> None:
    if (options.out / "cache" / "index.json").exists():
        return
    run("radial_finetune.pretrain.story_data", "--out", options.out / "cache", "--device", options.device, "--dtype",
        options.dtype, "--clips", f"{NATIVE}={options.clips}", "--seed", 7)  # fmt: skip


def train(options: argparse.Namespace) -> None:
    """Adapters of every kind, for as many steps as the time allows both."""
    common = {
        "data": str(options.out / "cache"), "model": "tiny", "objective": "step_distillation",
        "num_inference_steps": options.few, "teacher_steps": options.teacher_steps, "rank": options.rank,
        "layers": options.layers, "batch_tokens": options.batch_tokens, "learning_rate": options.learning_rate,
        "lr_scheduler": "cosine", "lr_warmup_steps": 50, "weight_decay": 0.0, "ema_decay": 0.99,
        "held_out": options.held_out, "validate_every": 0, "gradient_checkpointing": False, "device": options.device,
        "dtype": options.dtype, "trackers": [], "checkpoint_every": 500, "keep_checkpoints": 1,
    }  # fmt: skip
    kinds = {kind: common | {"attention": kind} for kind in options.kinds}
    steps = options.train_steps or steps_within(options, kinds)
    measured = {"validate_every": steps if options.held_out else 0}
    train_all(options.out / "runs", {kind: one | {"steps": steps} | measured for kind, one in kinds.items()})
    for kind in kinds:
        log = [line for line in read_log(options.out / "runs" / kind) if line["step"]]
        tenth = max(1, len(log) // 10)
        first, last = (statistics.mean(line["loss"] for line in part) for part in (log[:tenth], log[-tenth:]))
        spent = sum(line["seconds"] for line in log)
        print(f"{kind}: {len(log)} steps, {spent:.0f} s, loss {first:.4f} in the first tenth, {last:.4f} in the last")
        half(options.out / "runs" / kind / "adapter.safetensors", adapter_of(options, kind))


def adapter_of(options: argparse.Namespace, kind: str) -> Path:
    return options.out / f"tiny-{options.few}-step-{kind}.safetensors"


def half(file: Path, target: Path) -> None:
    """The same adapter in 16 bit; what is judged is this one."""
    settings = read_adapter_settings(file)
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    write_adapter(target, tensors, settings and settings.model_dump(), made=read_made(file), overwrite=True)
    print(target, f"{target.stat().st_size / 1e6:.1f} MB", flush=True)


def table(options: argparse.Namespace) -> None:
    """Scores of every way, radial and dense; what is measured is kept as it comes."""
    members = shapes.held_out(options.prompts // 2)
    kept = options.out / "values.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    sheet = []
    with shapes.scoring() as score:
        for kind in options.kinds:
            taught: list[Any] = []  # the clips of the model in all its steps, which the adapter was taught to make
            for way, fields in ways(options, kind).items():
                key = f"{kind}, {way}"
                if key in found and way != TEACHER:
                    continue
                request = make_request(prompt="x", model="tiny", num_frames=NATIVE, attention=kind, seed=0,
                                       device=options.device, dtype=options.dtype, **fields).resolve()  # fmt: skip
                model = load(request)
                shapes.generate_clips(request, model, [members[0][1]], 1)  # kernels are compiled
                if options.device == "cuda":
                    torch.cuda.synchronize()
                started = time.monotonic()
                clips = shapes.generate_clips(request, model, [text for _, text in members], options.batch_size)
                spent = time.monotonic() - started
                taught = taught or clips
                if key in found:
                    continue
                result = shapes.summarise([score(clips, [scene for scene, _ in members])])
                values = {name: list(map(float, value)) for name, value in result.values.items()}
                values["psnr"] = [fidelity(one, two)[0] for one, two in zip(clips, taught, strict=True)]
                places = range(0, len(members), max(1, len(members) // 4))
                sheet += [(f"{key}: {members[place][1]}", clips[place]) for place in places]
                names = ("num_inference_steps", "sampler", "flow_shift", "guidance_scale", "dense_steps")
                asked = {name: getattr(request, name) for name in names}
                found[key] = {"values": values, "seconds": spent, "asked": asked}
                kept.write_text(json.dumps(found))
                means = {name: round(100 * result.interval(name)[0], 1) for name in MEASURES}
                print(f"{key}: {means}, {np.mean(values['psnr']):.2f} dB, {spent:.1f} s, {asked}", flush=True)
    if sheet:
        contact_sheet(sheet, columns=2, count=9).save(options.out / "sheet.png", optimize=True)
    text = to_markdown(found, options)
    (options.out / "table.md").write_text(text)
    print(text)


def ways(options: argparse.Namespace, kind: str) -> dict[str, dict[str, Any]]:
    """What is asked for, by the words of the table."""
    few = options.few
    preset = PRESETS["4-step"] | {"num_inference_steps": few, "sampler": "euler"}
    found: dict[str, dict[str, Any]] = {
        TEACHER: {},
        f"{few} steps, guidance 3": {"num_inference_steps": few},
        f"{few} steps, no guidance": {"num_inference_steps": few, "guidance_scale": 1.0},
        f"{few} steps, preset": preset,
    }
    if (file := adapter_of(options, kind)).exists():
        found[f"{few} steps, adapter"] = {"loras": [{"path": str(file)}]}
    return found


def to_markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Means in percent with their 95 % intervals; PSNR in dB against the clip of all steps from the same noise; and the
    adapter minus each other way over the same prompts."""
    head = ["attention, way", *MEASURES, "PSNR, dB", "seconds", "adapter minus it: prompt", "whole motion", "PSNR, dB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, one in found.items():
        values = {name: np.array(value) for name, value in one["values"].items()}
        cells = [in_words(shapes.bootstrap(values[name]), 100) for name in MEASURES]
        teacher = key.endswith(TEACHER)
        cells += ["" if teacher else in_words(shapes.bootstrap(values["psnr"])), f"{one['seconds']:.1f}"]
        tuned = found.get(f"{key.split(', ')[0]}, {options.few} steps, adapter")
        if tuned is not None and tuned is not one:
            ours = {name: np.array(value) for name, value in tuned["values"].items()}
            cells += [str(compare(ours[name], values[name], MARGIN)) for name in ("prompt", "whole motion")]
            cells += ["" if teacher else in_words(shapes.bootstrap(ours["psnr"] - values["psnr"]))]
        else:
            cells += [""] * 3
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_words(interval: tuple[float, float, float], times: float = 1) -> str:
    mean, low, high = (times * value for value in interval)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
