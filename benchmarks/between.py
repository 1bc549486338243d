"""Frames between frames against repeated and blended ones: of clips of yours, every second frame is held out and made
again from its neighbours.

    python benchmarks/between.py CLIP... [--frames 121] [--width 640]

Prints the mean PSNR of the held-out frames, in dB, and how many of them are worse than blended ones.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from radial.video.finishing.between import Pair
from radial.video.finishing.enlarge import resized
from radial.video.reader import decode_frames


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=121, help="the most that are read of each")
    parser.add_argument("--width", type=int, default=640, help="wider ones are made smaller")
    options = parser.parse_args()
    print(
        "| clip | size | held out | repeated | blended | by flow | worse than blended |\n|---|---|---|---|---|---|---|"
    )
    for path in options.clips:
        frames = list(itertools.islice(decode_frames(path), options.frames))
        height, width, _ = frames[0].shape
        if width > options.width:
            size = round(height * options.width / width), options.width
            frames = [resized(frame, *size) for frame in frames]
        scores = []
        for before, middle, after in zip(frames[:-2:2], frames[1:-1:2], frames[2::2], strict=True):
            blended = ((before.astype(np.uint16) + after + 1) // 2).astype(np.uint8)
            made = (before, blended, Pair(before, after).at(0.5))
            scores.append([psnr(one, middle) for one in made])
        found = np.array(scores)
        repeated, mixed, flow = found.mean(0)
        worse = int((found[:, 2] < found[:, 1]).sum())
        size_of = f"{frames[0].shape[1]}x{frames[0].shape[0]}"
        print(f"| {path.stem} | {size_of} | {len(found)} | {repeated:.2f} | {mixed:.2f} | {flow:.2f} | {worse} |")


if __name__ == "__main__":
    main()
