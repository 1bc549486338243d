"""``python -m radial_finetune.world --out FOLDER --clips 512 --num-frames 129``: captioned clips of the shapes world,
as a folder that ``radial finetune prepare`` takes."""

from __future__ import annotations

import argparse
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from radial.video.clip import Video
from radial_finetune.world import describe, draw_scene, render


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m radial_finetune.world", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--num-frames", type=int, nargs="+", default=[33], help="frames a clip; several are mixed")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--fps", type=int, default=16)
    parser.add_argument("--two-figures", type=float, default=0.5, help="share of clips with two figures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_clips(
        options.out, options.clips, options.num_frames, options.height, options.width, options.fps,
        options.two_figures, options.seed,
    )  # fmt: skip
    print(options.out)


def write_clips(
    out: Path, clips: int, lengths: list[int], height: int, width: int, fps: int, two_figures: float, seed: int
) -> None:
    """Write clips and, beside each, its caption."""
    out.mkdir(parents=True, exist_ok=True)

    def write(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        scene = draw_scene(rng, 2 if rng.random() < two_figures else 1)
        caption = describe(scene, rng).text
        clip_CTHW = render([scene], lengths[number % len(lengths)], height, width)[0]
        pixels = ((clip_CTHW + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).numpy()
        Video(pixels, fps).write(out / f"{number:05d}.mp4", overwrite=True)
        (out / f"{number:05d}.txt").write_text(caption, encoding="utf-8")

    torch.set_num_threads(1)  # one clip a thread: threads within each would fight over the cores
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(clips)))


if __name__ == "__main__":
    main()
