"""What the app costs around a clip: ``python benchmarks/overhead.py``.

The bundled model's clip as a job of the queue, from claiming it to the file with its receipt, against the bare call of
the same pipeline with the same attention; both in one process with the model loaded, in turn, medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import radial
from radial.loading.load import load
from radial.request import make_request
from radial_app.jobs.job import Job, Output
from radial_app.jobs.store import JobStore
from radial_app.worker.worker import Worker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--num-frames", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    request = make_request(prompt="a red circle", model=options.model, num_frames=options.num_frames, seed=1).resolve()
    model = load(request)
    attention = request.attention_settings

    def bare() -> float:
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(1)
        with (
            radial.apply(model.pipe, **attention.as_arguments()),
            torch.inference_mode(),
        ):
            model.pipe(
                request.prompt, negative_prompt=request.negative_prompt, height=request.height, width=request.width,
                num_frames=request.num_frames, num_inference_steps=request.num_inference_steps, output_type="np",
                guidance_scale=request.guidance_scale, max_sequence_length=model.spec.max_sequence_length,
                generator=generator,
            )  # fmt: skip
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder, JobStore(Path(folder) / "data") as store:
        worker = Worker(store, until_idle=True)

        def job() -> float:
            store.add([Job(id="", request=request, output=Output(folder=f"{folder}/out"))])
            started = time.perf_counter()
            worker.work_off()
            return time.perf_counter() - started

        with store.locks.alive(worker.name):
            bare(), job()  # warm up
            times = [(bare(), job()) for _ in range(options.rounds)]
        assert set(store.counts()) == {"done"}
    pipeline, app = (statistics.median(column) for column in zip(*times, strict=True))
    more = statistics.median(b / a - 1 for a, b in times)
    print(f"bare {pipeline:.2f} s, as a job {app:.2f} s; median of the pairs: {more:+.1%}")


if __name__ == "__main__":
    main()
