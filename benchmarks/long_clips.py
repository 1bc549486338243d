"""Clips four times the native length from the bundled model, untuned and tuned: ``python benchmarks/long_clips.py``.

Writes clips of the shapes world, caches them, tunes adapters with dense and with radial attention (with the first two
layers dense, and with none) from three seeds on the same data for the same steps, and holds what they make of held-out
prompts against ground truth over the whole clip, beside the untuned model with and without RIFLEx and the native
length. Each stage is kept in the output folder, so that a later call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from radial.loading.load import load
from radial.request import make_request
from radial_finetune.data.pictures import contact_sheet, draw_intervals
from radial_finetune.evaluate import shapes

TUNED = {
    "dense": {"attention": "dense"},
    "radial": {"attention": "radial"},
    "radial, no dense layers": {"attention": "radial", "dense_layers": 0},
}
MEASURES = ("prompt", "whole motion", "repetition", "persistence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", default=["data", "train", "evaluate"],
                        help="data, trial (of learning rates), train, evaluate")  # fmt: skip
    parser.add_argument("--num-frames", type=int, default=129)
    parser.add_argument("--clips", type=int, default=1024, help="training clips of the target length")
    parser.add_argument("--native-clips", type=int, default=0, help="and of the native length")
    parser.add_argument("--held-out", type=int, default=18)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[2.5e-3], help="the first one trains")
    parser.add_argument("--trial-steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=32, help="held-out prompts with one figure, and with two")
    parser.add_argument("--at-once", type=int, default=3, help="runs that share the device: more wait for each other")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in options.stages:
        started = time.monotonic()
        {"data": make_data, "trial": try_rates, "train": train, "evaluate": evaluate}[stage](options)
        print(f"[{stage}: {time.monotonic() - started:.0f} s]", flush=True)


def make_data(options: argparse.Namespace) -> None:
    """Training clips as files, then as a cache."""
    for name, frames, clips, seed in (
        ("long", options.num_frames, options.clips, 1), ("native", 33, options.native_clips, 2),
    ):  # fmt: skip
        if clips:
            run("radial_finetune.world", "--out", options.out / "data" / name, "--clips", clips, "--num-frames", frames,
                "--seed", seed)  # fmt: skip
    run(
        "radial_app", "finetune", "prepare", options.out / "data", "--out", options.out / "cache",
        "--num-frames", options.num_frames, "--num-frames", 33, "--batch-size", 32, "--static-threshold", 0,
        "--device", options.device,
    )  # fmt: skip


def try_rates(options: argparse.Namespace) -> None:
    """The learning rate with the lowest held-out loss after a few steps, with radial attention. Beside it, what a step
    takes compiled, and dense."""
    runs = {
        f"rate-{rate:g}": settings(options, TUNED["radial"], 0) | {
            "learning_rate": rate, "steps": options.trial_steps, "validate_every": options.trial_steps,
            "ema_decay": 0.0,
        }
        for rate in options.learning_rates
    }  # fmt: skip
    runs["compiled"] = runs[f"rate-{options.learning_rates[0]:g}"] | {"compile": True}
    runs["dense"] = runs[f"rate-{options.learning_rates[0]:g}"] | {"attention": "dense"}
    train_all(options, runs, "trial")
    losses = {}
    for name, config in runs.items():
        rate, log = config["learning_rate"], read_log(options.out / "trial" / name)
        if name.startswith("rate"):
            losses[rate] = log[-1]["validation"]
        seconds = sorted(line["seconds"] for line in log)[len(log) // 2]
        print(f"{name}: held-out {log[-1]['validation']:.4f}, beyond {log[-1]['validation_beyond']:.4f}, "
              f"{1000 * seconds:.0f} ms a step, {log[-1].get('memory', 0) / 1e9:.1f} GB", flush=True)  # fmt: skip
    best = min(losses, key=losses.__getitem__)
    (options.out / "rate.json").write_text(json.dumps(best))


def train(options: argparse.Namespace) -> None:
    """Every kind of adapter from every seed."""
    rate_file = options.out / "rate.json"
    rate = json.loads(rate_file.read_text()) if rate_file.exists() else options.learning_rates[0]
    runs = {
        f"{kind} {seed}": settings(options, changes, seed) | {"learning_rate": rate}
        for kind, changes in TUNED.items()
        for seed in options.seeds
    }
    train_all(options, runs, "runs")
    for name in runs:
        log = read_log(options.out / "runs" / name)
        last = [line for line in log if "validation" in line][-1]
        print(f"{name}: rate {rate:g}, held-out {last['validation']:.4f}, beyond {last['validation_beyond']:.4f}, "
              f"{sum(line['seconds'] for line in log):.0f} s", flush=True)  # fmt: skip


def settings(options: argparse.Namespace, changes: dict[str, Any], seed: int) -> dict[str, Any]:
    return {
        "data": str(options.out / "cache"), "model": "tiny", "rank": options.rank, "layers": options.layers,
        "steps": options.steps, "batch_size": options.batch_size, "lr_scheduler": "cosine", "lr_warmup_steps": 50,
        "weight_decay": 0.0, "ema_decay": 0.99, "timestep_sampling": "uniform", "held_out": options.held_out,
        "validate_every": max(1, options.steps // 3), "checkpoint_every": max(1, options.steps // 4),
        "gradient_checkpointing": False, "compile": options.compile, "device": options.device,
        "dtype": options.dtype, "trackers": [], "seed": seed,
    } | changes  # fmt: skip


def train_all(options: argparse.Namespace, runs: dict[str, dict[str, Any]], folder: str) -> None:
    """Runs in processes of their own, several at once; a run that was cut off goes on."""
    waiting, working = list(runs.items()), []
    while waiting or working:
        while waiting and len(working) < options.at_once:
            name, config = waiting.pop(0)
            output = options.out / folder / name
            if (output / "adapter.safetensors").exists():
                continue
            output.mkdir(parents=True, exist_ok=True)
            file = output / "run.toml"
            lines = (config | {"output": str(output)}).items()
            file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines))
            command = [sys.executable, "-m", "radial_app", "finetune", "run", str(file), "--resume"]
            log = (output / "log.txt").open("w")
            working.append((name, subprocess.Popen(command, stdout=log, stderr=log, env=environment(2))))
        for name, process in list(working):
            if process.poll() is not None:
                working.remove((name, process))
                if process.returncode:
                    raise SystemExit(f"{name} failed: {(options.out / folder / name / 'log.txt').read_text()[-2000:]}")
        time.sleep(0.2)


def evaluate(options: argparse.Namespace) -> None:
    """Scores of every kind, as a table, a plot and a contact sheet."""
    members = shapes.held_out(options.prompts)
    common = {
        "prompt": "evaluation", "model": "tiny", "device": options.device, "dtype": options.dtype, "seed": 0,
        "long_adapter": False,
    }  # fmt: skip
    long = common | {"num_frames": options.num_frames}
    untuned = {
        "native length, untuned": common | {"attention": "dense"},
        "untuned": long | {"attention": "dense"},
        "untuned, RIFLEx": long | {"attention": "dense", "riflex": True},
        "untuned, radial": long | {"attention": "radial"},
    }
    results, sheet, seconds = {}, [], {}
    with shapes.scoring() as score:
        results["ground truth"] = shapes.score_truth(members, options.num_frames, score)
        for name, fields in untuned.items():
            results[name] = measure(options, name, [fields], members, score, sheet, seconds)
        for kind in TUNED:
            files = [options.out / "runs" / f"{kind} {seed}" / "adapter.safetensors" for seed in options.seeds]
            requests = [long | {"loras": [{"path": str(file)}]} for file in files]
            results[f"{kind} LoRA"] = measure(options, f"{kind} LoRA", requests, members, score, sheet, seconds)
    everything = ("colour", "shape", "motion", *MEASURES)
    table = shapes.to_markdown(results, everything)
    (options.out / "results.md").write_text(table)
    values = {name: {m: list(v) for m, v in result.values.items()} for name, result in results.items()}
    (options.out / "results.json").write_text(json.dumps({"values": values, "seconds": seconds}))
    intervals = {name: {m: result.interval(m) for m in MEASURES} for name, result in results.items()}
    draw_intervals(intervals, MEASURES, options.out / "results.png")
    contact_sheet(sheet, columns=2, count=9).save(options.out / "sheet.png", optimize=True)
    print(table)
    print("seconds for", len(members), "clips:", {name: round(s, 1) for name, s in seconds.items()})


def measure(
    options: argparse.Namespace, name: str, requests: list[dict[str, Any]], members: Any, score: Any, sheet: list[Any],
    seconds: dict[str, float],
) -> shapes.Result:  # fmt: skip
    """Scores of one kind: a request for each adapter, or one for an untuned model that is run from every seed."""
    found = []
    seeds = [[seed] for seed in options.seeds] if len(requests) > 1 else [options.seeds]
    for number, (fields, own) in enumerate(zip(requests, seeds, strict=True)):
        request = make_request(**fields).resolve()
        model = load(request)
        spent = []
        shapes.generate_clips(request, model, ["warm up"], 1)

        def keep(seed: int, clips: Any, spent: list[float] = spent, first: bool = number == 0) -> None:
            spent.append(time.monotonic())
            if first and seed == options.seeds[0]:
                for place in range(0, len(members), max(1, len(members) // 4)):
                    sheet.append((f"{name}: {members[place][1]}", clips[place]))

        started = time.monotonic()
        found.append(shapes.score_model(request, model, members, score, own, 64, keep))
        seconds.setdefault(name, spent[0] - started)
    result = found[0] if len(found) == 1 else shapes.join(found)
    print(name, {m: tuple(round(v, 3) for v in result.interval(m)) for m in MEASURES}, flush=True)
    return result


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def environment(threads: int | None = None) -> dict[str, str]:
    more = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return dict(os.environ) | more


def run(module: str, *arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, env=environment())


if __name__ == "__main__":
    main()
