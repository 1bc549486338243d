"""What dense steps between sparse ones bring back, and what else their work could buy: ``python benchmarks/rectify.py
--out FOLDER``.

On the bundled model, at one seed a prompt, with adaptive attention so sparse that clips leave the way of the dense one.
Error is that of the finished clip's latents against the dense clip's, |ours - dense|^2 / |dense|^2; the gap that a way
of spending work recovers is the share of the sparse run's error that it takes away. Prompts are held out from the
model's training. Every number is kept in the folder as it comes, so that a later call goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel, load
from radial.request import make_request
from radial_finetune.evaluate import shapes

PROMPTS = (1, 8)  # of the held-out ones: a small figure, and two figures
SPARSE: dict[str, Any] = {"attention": "adaptive", "dense_steps": 0}
# The ways of spending work, at 12 steps: what each adds to a sparse run. From the fourth on all cost about as much.
WAYS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "every 6th step dense": {"dense_every": 6},
    "first 2 steps dense": {"dense_steps": 2},
    "every 4th step dense": {"dense_every": 4},
    "first 3 steps dense": {"dense_steps": 3},
    "first step, then every 4th": {"dense_steps": 1, "dense_every": 4},
    "first 5 steps at 0.6": {"dense_steps": 5, "early_density": 0.6},
    "all steps at 0.35": {"density": 0.35},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-frames", type=int, default=65)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--policy", help="a file of `radial profile` to try, with the work of 0, 2 and 3 dense steps")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.policy:
        for share in (0.334, 0.445, 0.5):
            WAYS[f"policy at {share:g}"] = {"policy": options.policy, "target_share": share}
            options.ways.append(f"policy at {share:g}")
    options.out.mkdir(parents=True, exist_ok=True)
    members, model = shapes.held_out(8), None
    for prompt in options.prompts:
        about = {
            "prompt": members[prompt][1], "seed": 1000 + prompt, "num_frames": options.num_frames,
            "num_inference_steps": options.steps, "device": options.device, "dtype": "float32",
        }  # fmt: skip
        model = model or load(make_request(**about, attention="dense").resolve())
        kept = options.out / f"dense-{prompt}.npz"
        if not kept.exists():
            latents, _ = make(model, about | {"attention": "dense"})
            np.savez_compressed(kept, latents=latents.numpy())
        real = torch.from_numpy(np.load(kept)["latents"])
        for way in options.ways:
            if any((one["prompt"], one["way"]) == (prompt, way) for one in numbers(options.out)):
                continue
            latents, share = make(model, about | SPARSE | {"density": options.density} | WAYS[way])
            error = float((latents - real).square().sum() / real.square().sum())
            line = {"prompt": prompt, "way": way, "share": share, "error": error}
            with (options.out / "numbers.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    show(options.out)


class _DenoisedError(Exception):
    """There are the latents that are wanted; they are not decoded."""


def make(model: LoadedModel, fields: dict[str, Any]) -> tuple[Tensor, float]:
    """A clip's latents, and which share of attention they took."""
    kept: list[Any] = []

    def on_step(step: Any) -> Any:
        if step.step == step.steps:
            kept.append(step.snapshot())
            raise _DenoisedError
        return "go on"

    with contextlib.suppress(_DenoisedError):
        list(generate(make_request(**fields).resolve(), model=model, on_step=on_step))
    return kept[0].latents.float(), kept[0].attention["computed_share"]


def numbers(out: Path) -> list[dict[str, Any]]:
    """All that is known so far."""
    file = out / "numbers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def show(out: Path) -> None:
    """The table: means over the prompts of which there is a sparse run."""
    found = numbers(out)
    sparse = {one["prompt"]: one for one in found if one["way"] == "sparse"}
    print("| | blocks computed | error | recovered | each prompt |\n|---|---|---|---|---|")
    for way in WAYS:
        some = [one for one in found if one["way"] == way and one["prompt"] in sparse]
        if not some:
            continue
        gaps = [1 - one["error"] / sparse[one["prompt"]]["error"] for one in some]
        whole = 1 - sum(one["error"] for one in some) / sum(sparse[one["prompt"]]["error"] for one in some)
        share, error = (np.mean([one[name] for one in some]) for name in ("share", "error"))
        each = " ".join(f"{gap:.0%}" for gap in gaps)
        print(f"| {way} | {share:.0%} | {error:.4f} | {whole:.0%} | {each} |")


if __name__ == "__main__":
    main()
