"""Wan 2.1 and 2.2 on packed clips, by diffusers' own modules, step by step as ``WanTransformer3DModel`` computes.

Shapes: B clips, S tokens of all clips, L words of all, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from radial.attention.packed.pack import Pack, Run

_TAKEN = {"hidden_states", "timestep", "encoder_hidden_states", "return_dict"}


class PackedWan:
    """Of a ``WanTransformer3DModel`` that reads text alone; a timestep a clip, or (Wan 2.2 5B) one a token."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.blocks = [(block, _block) for block in transformer.blocks]

    def words(self, call: Mapping[str, Any]) -> int:
        return int(call["encoder_hidden_states"].shape[1])

    def refuse(self, call: Mapping[str, Any]) -> str | None:
        others = [name for name, value in call.items() if name not in _TAKEN and value is not None]
        return f"packed clips know nothing of {others[0]}" if others else None

    def forward(self, calls: Sequence[Mapping[str, Any]], pack: Pack, run: Run) -> list[Tensor]:
        model: Any = self._transformer
        latents = pack.stack([call["hidden_states"] for call in calls])
        hidden_1SC = pack.enter([model.patch_embedding(x).flatten(2).transpose(1, 2) for x in latents])
        turns = [model.rope(x) for x in latents]
        rotary = tuple(
            pack.enter([turn[half].expand(len(x), -1, -1, -1) for turn, x in zip(turns, latents, strict=True)])
            for half in (0, 1)
        )
        a_token = calls[0]["timestep"].ndim == 2
        timesteps = [call["timestep"] for call in calls]
        timestep = pack.enter(pack.stack(timesteps))[0] if a_token else torch.cat(timesteps)
        text_1LC = torch.cat([call["encoder_hidden_states"] for call in calls], 1)
        temb, modulation, text_1LC, _ = model.condition_embedder(
            timestep, text_1LC, None, timestep_seq_len=len(timestep) if a_token else None
        )
        modulation = modulation.unflatten(-1, (6, -1))
        for block in model.blocks:
            hidden_1SC = run(block, hidden_1SC, text_1LC, modulation, rotary, pack)
        shift, scale = (model.scale_shift_table[0].to(temb.device) + temb.unsqueeze(-2)).unbind(-2)
        hidden_1SC = pack.each(
            lambda x, scale, shift: (model.norm_out(x.float()) * (1 + scale) + shift).type_as(x),
            hidden_1SC, scale, shift,
        )  # fmt: skip
        predicted = pack.leave(model.proj_out(hidden_1SC))
        return [
            clip
            for group, x in zip(pack.groups, predicted, strict=True)
            for clip in _unpatch(x, group.layout.grid, model.config.patch_size).split(1)
        ]


def _unpatch(x_NTP: Tensor, grid: Any, patch: Sequence[int]) -> Tensor:
    x = x_NTP.reshape(len(x_NTP), grid.frames, grid.height, grid.width, *patch, -1)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _block(
    block: Any, hidden_1SC: Tensor, text_1LC: Tensor, modulation: Tensor, rotary: tuple[Tensor, Tensor], pack: Pack
) -> Tensor:
    """``WanTransformerBlock``; ``modulation`` is ``[B, 6, C]``, or of each token ``[1, S, 6, C]``."""
    shift, scale, gate, c_shift, c_scale, c_gate = (block.scale_shift_table[0] + modulation.float()).unbind(-2)
    kept = hidden_1SC.dtype

    def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        return (x.float() + update * gate).type_as(x)

    def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (x * (1 + scale) + shift).to(kept)

    normed = pack.each(modulated, block.norm1(hidden_1SC.float()), scale, shift)
    hidden_1SC = pack.each(gated, hidden_1SC, block.attn1(normed, None, None, rotary), gate)
    normed = block.norm2(hidden_1SC.float()).type_as(hidden_1SC)
    hidden_1SC = hidden_1SC + block.attn2(normed, text_1LC, None, None)
    normed = pack.each(modulated, block.norm3(hidden_1SC.float()), c_scale, c_shift)
    return pack.each(gated, hidden_1SC, block.ffn(normed).float(), c_gate)
