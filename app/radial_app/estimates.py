"""What a request will take, before anything is loaded: from the checkpoint's files, and from what was made here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from radial.checkpoints import checkpoint_folder
from radial.errors import RadialError
from radial.models import find_model
from radial.request import GenerationRequest
from radial_app.store import JobStore


@dataclass(frozen=True)
class Estimate:
    """Seconds a video and bytes of memory, where they can be told; ``density`` is the share of attention computed."""

    seconds: float | None
    memory: int | None
    density: float | None


def estimate(request: GenerationRequest, store: JobStore) -> Estimate:
    """What one video of a resolved request will take.

    Seconds are the median of clips of the same model, size, steps and attention that were made here. Memory is the
    weights as they lie on the disk, what a transformer block holds of a clip, and the decoded frames.
    """
    return Estimate(store.seconds_of(request), _memory(request), _density(request))


def _memory(request: GenerationRequest) -> int | None:
    spec = find_model(request.model)
    try:
        folder = checkpoint_folder(spec)
    except RadialError:
        return None
    if folder is None:
        return None
    weights = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors"))
    config = _read(Path(folder) / "transformer" / "config.json")
    dim = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    tokens = request.grid(spec).tokens
    block = tokens * dim * 2 * 12  # in 16 bit: the residual, queries, keys and values, twice, and the wide layer
    frames = request.clip_frames * request.clip_height * request.clip_width * 3 * 4 * 2
    return int(weights + block + frames)


def _density(request: GenerationRequest) -> float | None:
    from radial.plan import BlockPlan

    if request.attention == "dense":
        return 1.0
    spec = find_model(request.model)
    pattern, schedule, block_size = request.radial_settings(spec)
    grid = request.grid(spec)
    if grid.tokens > 300_000:  # seconds of work for a table
        return None
    dense = schedule.dense_share(spec.layers, request.num_inference_steps or 1)
    return dense + (1 - dense) * BlockPlan.build(grid, pattern, block_size).density


def _read(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, int)}
