"""A whole training step as one CUDA graph: its many small kernels no longer wait for Python."""

from __future__ import annotations

from collections.abc import Callable

import torch


def capture(step: Callable[[], None], warm_up: int = 4) -> Callable[[], None]:
    """Run a step a few times, then record it; the returned function replays it on the same tensors.

    The step must not read anything back to the host.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
