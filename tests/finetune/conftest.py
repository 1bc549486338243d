"""Clips of the shapes world as real files, a tiny model, a cache of them, and the settings of a short run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_files import CUT, write_video

from radial.loading.load import LoadedModel, load
from radial.request import make_request
from radial_finetune.data.buckets import Bucket
from radial_finetune.data.clips import Cut
from radial_finetune.data.prepare import prepare
from radial_finetune.data.sources import find_sources
from radial_finetune.world import describe, draw_scene, render


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of the shapes world, of odd sizes and rates, with captions."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    shapes = [(16, 48, 48), (24, 64, 40), (30, 36, 70), (25, 50, 66)]
    for number, (fps, height, width) in enumerate(shapes * 2):
        scene = draw_scene(rng)
        clip = render([scene], fps, height, width)[0]
        frames = ((clip.permute(1, 2, 3, 0).numpy() + 1) * 127.5).astype(np.uint8)
        write_video(folder / f"{number}.mp4", frames, fps)
        (folder / f"{number}.txt").write_text(describe(scene, rng).text)
    return folder


@pytest.fixture(scope="session")
def model(wan_folder: Path) -> LoadedModel:
    return load(make_request(prompt="a", model=str(wan_folder), height=32, width=32, num_frames=9, seed=0))


@pytest.fixture(scope="session")
def cache(data: Path, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("cache")
    prepare(find_sources(data), out, model, CUT)
    return out


@pytest.fixture(scope="session")
def two_lengths(data: Path, model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 13- and 5-frame clips: each second of video gives one of 13 frames and one of what is left."""
    out: Path = tmp_path_factory.mktemp("two_lengths")
    buckets = (Bucket(5, 32, 32), Bucket(13, 32, 32))
    prepare(find_sources(data), out, model, Cut(buckets, fps=18, cut_threshold=99, static_threshold=0))
    return out


@pytest.fixture
def config(cache: Path, wan_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data": str(cache), "output": str(tmp_path / "run"), "model": str(wan_folder), "rank": 4, "steps": 6,
        "batch_size": 2, "learning_rate": 1e-2, "checkpoint_every": 2, "ema_decay": 0.5, "held_out": 1,
        "validate_every": 3, "lr_scheduler": "cosine", "lr_warmup_steps": 2, "trackers": [],
    }  # fmt: skip
