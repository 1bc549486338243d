"""What both processes of ``test_packed.py`` run: packs alone, then shared.

Takes its number and a file to meet at. Prints, from the first process, a line of JSON for each case: how far outputs
and gradients are apart.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from test_packed import WAYS, Way, weight_of
from torch import Tensor

import radial
from radial import ContextParallel, Schedule
from radial.attention.context_parallel import end_process_groups
from radial.attention.packed.clips import PackedClips

# Of 45 and 81 tokens, which two processes do not halve.
SIZES = ((3, 6, 10), (3, 6, 10), (9, 6, 6))
CASES = {
    "wan, one list": WAYS["wan, one list"],
    "wan, a timestep a token, dense": replace(WAYS["wan, a timestep a token"], dense=True),
    "wan, lists of each head": WAYS["wan, lists of each head"],
    "hunyuan": WAYS["hunyuan"],
}


def run(way: Way, parallel: ContextParallel | None) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """What is predicted of the clips of a pack, of one by itself between packs, and the gradients of the pack."""
    transformer: Any = way.build()
    calls = way.calls(transformer)
    schedule = Schedule.dense() if way.dense else Schedule(dense_layers=1)
    with (
        radial.apply(transformer, planners=[way.planner], schedule=schedule, parallel=parallel) as attention,
        PackedClips(transformer, attention, one_list=way.one_list) as packed,
    ):
        packed(calls[:2])
        between = transformer(**calls[1], return_dict=False)[0].detach()
        predicted = packed(calls)
        torch.stack([weight_of(clip) for clip in predicted]).sum().backward()
    gradients = {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
    return [clip.detach() for clip in predicted], between, gradients


def compare(name: str, way: Way, parallel: ContextParallel) -> None:
    alone, between, gradients = run(way, None)
    shared, also_between, partial = run(way, parallel)
    largest = max(float(value.norm()) for value in gradients.values())
    apart = 0.0
    for parameter, whole in gradients.items():
        mean = partial.get(parameter, torch.zeros_like(whole))
        torch.distributed.all_reduce(mean, group=parallel.group)
        apart = max(apart, float((mean / parallel.size - whole).norm()) / largest)
    if parallel.rank == 0:
        output = max(float((one - other).abs().max()) for one, other in zip(shared, alone, strict=True))
        told = {"case": name, "output": output, "between": float((also_between - between).abs().max())}
        print(json.dumps(told | {"gradients": apart}))


def main() -> None:
    rank, meet = sys.argv[1:]
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=int(rank), world_size=2)
    torch.set_num_threads(1)
    parallel = ContextParallel.over(torch.distributed.new_group())
    for name, way in CASES.items():
        compare(name, replace(way, sizes=SIZES), parallel)
    del parallel
    end_process_groups()


if __name__ == "__main__":
    main()
