"""A digest of what every tiny pipeline makes, to hold one commit to another: equal lines, equal frames.

    python benchmarks/same_frames.py > after.txt

Each pipeline of ``tests/attention/tiny_pipelines.py`` makes a clip by a plan that leaves blocks out and with dense
layers and steps; the app then drives those that it can from their folders, the bundled model with its adapter too.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def digest(value: Any) -> str:
    """Of an array's bytes, or of what JSON says of a value."""
    data = json.dumps(value, sort_keys=True).encode() if isinstance(value, (dict, list)) else value.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    sys.path[:0] = [str(ROOT / "tests" / name) for name in ("attention", "generation")]
    from tiny_pipelines import CASES

    import radial

    for name, case in CASES.items():
        pipe = case.build()
        pipe.set_progress_bar_config(disable=True)
        pattern, schedule = radial.RadialPattern(decay=0.2), radial.Schedule(dense_layers=1, dense_steps=1)
        with torch.inference_mode(), radial.apply(pipe, pattern=pattern, schedule=schedule, block_size=16) as installed:
            output = pipe(**case.call(pipe), generator=torch.Generator().manual_seed(1))
            latents = torch.as_tensor(case.latents(output)).float().numpy()
        print(f"{name:<22} {digest(latents)} {installed.computed_share:.9f}", flush=True)
    drive()


def drive() -> None:
    """The whole way, from a request to frames and receipt."""
    from PIL import Image
    from test_every_pipeline import DRIVEN
    from tiny_pipelines import CASES

    import radial

    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (100, 80), "teal").save(Path(folder) / "start.png")
        clips: dict[str, dict[str, Any]] = {"tiny": {}, "tiny-long": {"num_frames": 97, "num_inference_steps": 4}}
        for name in DRIVEN:
            CASES[name].build().save_pretrained(Path(folder) / name)
            clips[name] = {
                "model": str(Path(folder) / name), "height": 64, "width": 96, "num_frames": 17, "snap": True,
                "num_inference_steps": 3, "dense_steps": 1,
            }  # fmt: skip
            if DRIVEN[name]:
                clips[name]["image"] = str(Path(folder) / "start.png")
        for name, fields in clips.items():
            request = radial.GenerationRequest(prompt="a red circle", seed=3, **fields)
            (video,) = radial.generate(request)
            attention = digest(video.receipt["attention"])
            print(f"driven {name:<15} {digest(video.frames)} {attention}", flush=True)


if __name__ == "__main__":
    main()
