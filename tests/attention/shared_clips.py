"""What every process of ``test_context_parallel.py`` runs: transformers alone, then sharing their clips.

Prints, from the first process, a line of JSON for each case: how far outputs and gradients are apart.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from family_cases import CASES, FamilyCase
from torch import Tensor

import radial
from radial import ContextParallel, Schedule
from radial.attention.context_parallel import end_process_groups
from radial.attention.families.find import find_family
from radial.attention.positions import riflex
from radial.plans.layout import TokenOrder
from radial.plans.pattern import RadialPattern

# 5 x 7 x 5 tokens divide by none of 2, 3 and 4; layers of both kinds, and a text of another length in each entry.
LATENTS = {"HunyuanVideo15Transformer3DModel": (5, 7, 5), "LTXVideoTransformer3DModel": (5, 7, 5)}

RIFLEX = ("WanTransformer3DModel", "HunyuanVideoTransformer3DModel")


def run(
    case: FamilyCase, transformer: Any, parallel: ContextParallel | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    inputs = case.inputs(transformer, LATENTS.get(case.kind, (5, 14, 10)), 2)
    if case.kind == "CogVideoXTransformer3DModel":
        angle = torch.linspace(0, 3, 5 * 7 * 5)[:, None] * torch.linspace(1, 2, 24)
        inputs["image_rotary_emb"] = (angle.cos(), angle.sin())
    transformer.zero_grad()
    order: TokenOrder = "columns" if find_family(transformer).reorder(transformer) else "raster"
    slowed = riflex([transformer], 3.0) if case.kind in RIFLEX else contextlib.nullcontext()
    with slowed, radial.apply(
        transformer, pattern=RadialPattern(decay=0.5), schedule=Schedule(dense_layers=1), block_size=16,
        parallel=parallel, far_field="pyramid", token_order=order, dense_above=100,
    ) as installed:  # fmt: skip
        output = transformer(**inputs, return_dict=False)[0]
        assert installed.context.probe is not None
        looked = torch.tensor(installed.context.probe.figures)
        output.float().square().mean().backward()
    return output.detach(), looked, {n: p.grad.clone() for n, p in transformer.named_parameters() if p.grad is not None}


def compare(kind: str, parallel: ContextParallel) -> None:
    case = CASES[kind]
    transformer = case.build()
    if kind == "HunyuanVideoTransformer3DModel":
        transformer.enable_gradient_checkpointing()
    alone, looked, gradients = run(case, transformer, None)
    shared, looked_together, partial = run(case, transformer, parallel)
    apart = 0.0
    for name, whole in gradients.items():
        mean = partial.get(name, torch.zeros_like(whole))
        torch.distributed.all_reduce(mean, group=parallel.group)
        apart = max(apart, float((mean / parallel.size - whole).norm() / (whole.norm() + 1e-6)))
    assert torch.allclose(looked_together, looked, atol=1e-5), (looked_together, looked)
    if parallel.rank == 0:
        output = float((shared - alone).abs().max())
        print(json.dumps({"kind": kind, "processes": parallel.size, "output": output, "gradients": apart}))


def main() -> None:
    torch.distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    everybody, pair = torch.distributed.new_group(), torch.distributed.new_group([0, 1])
    if torch.distributed.get_rank() < 2:  # a part of all processes shares clips as well
        compare("WanTransformer3DModel", ContextParallel.over(pair))
    for kind in sys.argv[1:]:
        compare(kind, ContextParallel.over(everybody))
    assert threads() > 2
    del everybody, pair
    end_process_groups()
    # One that held a tensor could abort the process while Python ends. The default group's two do nothing; modules that
    # were imported meanwhile may keep them.
    assert threads() <= 2


def threads() -> int:
    """How many threads work for gloo."""
    return [task.read_text() for task in Path("/proc/self/task").glob("*/comm")].count("pt_gloo_runloop\n")


if __name__ == "__main__":
    main()
