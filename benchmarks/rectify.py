"""What dense steps between sparse ones bring back, and what else their work could buy: ``python benchmarks/rectify.py
--out FOLDER``.

On the bundled model, at one seed a prompt, with adaptive attention so sparse that clips leave the way of the dense one.
Error is that of the finished clip's latents against the dense clip's, |ours - dense|^2 / |dense|^2; the gap that a way
of spending work recovers is the share of the sparse run's error that it takes away. Prompts are held out from the
model's training. Every number is kept in the folder as it comes, so that a later call goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radial.generation.pipeline import generate
from radial.loading.load import LoadedModel, load
from radial.request import make_request
from radial.video.fidelity import fidelity
from radial_finetune.evaluate import shapes

PROMPTS = (1, 3, 8, 10)  # of the held-out ones: a small figure, a large one, two of two figures
SPARSE: dict[str, Any] = {"attention": "adaptive", "dense_steps": 0}
# The ways of spending work, at 20 steps: what each adds to a sparse run.
WAYS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "every 10th step dense": {"dense_every": 10},
    "first 2 steps dense": {"dense_steps": 2},
    "every 5th step dense": {"dense_every": 5},
    "first 4 steps dense": {"dense_steps": 4},
    "first step, then every 5th": {"dense_steps": 1, "dense_every": 5},
    "first 8 steps at 0.55": {"dense_steps": 8, "early_density": 0.55},
    "all steps at 0.32": {"density": 0.32},
    "every 3rd step dense": {"dense_every": 3},
    "first 6 steps dense": {"dense_steps": 6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-frames", type=int, default=65)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
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
            frames, latents, _ = make(model, about | {"attention": "dense"})
            np.savez_compressed(kept, frames=frames, latents=latents.numpy())
        dense = np.load(kept)
        for way in options.ways:
            if any((one["prompt"], one["way"]) == (prompt, way) for one in numbers(options.out)):
                continue
            frames, latents, told = make(model, about | SPARSE | {"density": options.density} | WAYS[way])
            real = torch.from_numpy(dense["latents"])
            error = float((latents - real).square().sum() / real.square().sum())
            psnr, _ = fidelity(frames, dense["frames"])
            line = {"prompt": prompt, "way": way, "share": told["computed_share"], "error": error, "psnr": psnr}
            with (options.out / "numbers.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    show(options.out)


def make(model: LoadedModel, fields: dict[str, Any]) -> tuple[np.ndarray, Tensor, dict[str, Any]]:
    """A clip's frames, its latents, and what its receipt says of attention."""
    kept: list[Tensor] = []

    def on_step(step: Any) -> Any:
        if step.step == step.steps:
            kept.append(step.snapshot().latents.float())
        return "go on"

    (video,) = generate(make_request(**fields).resolve(), model=model, on_step=on_step)
    return video.frames, kept[0], video.receipt["attention"]


def numbers(out: Path) -> list[dict[str, Any]]:
    """All that is known so far."""
    file = out / "numbers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def show(out: Path) -> None:
    """The table: means over the prompts of which there is a sparse run."""
    found = numbers(out)
    sparse = {one["prompt"]: one for one in found if one["way"] == "sparse"}
    print("| | attention computed | error | recovered | each prompt | PSNR, dB |\n|---|---|---|---|---|---|")
    for way in WAYS:
        some = [one for one in found if one["way"] == way and one["prompt"] in sparse]
        if not some:
            continue
        gaps = [1 - one["error"] / sparse[one["prompt"]]["error"] for one in some]
        whole = 1 - sum(one["error"] for one in some) / sum(sparse[one["prompt"]]["error"] for one in some)
        share, error, psnr = (np.mean([one[name] for one in some]) for name in ("share", "error", "psnr"))
        each = " ".join(f"{gap:.0%}" for gap in gaps)
        print(f"| {way} | {share:.0%} | {error:.4f} | {whole:.0%} | {each} | {psnr:.1f} |")


if __name__ == "__main__":
    main()
