"""HunyuanVideo on packed clips, by diffusers' own modules, step by step as ``HunyuanVideoTransformer3DModel`` computes.

Of each text only the words that are there enter the sequence.

Shapes: B clips, S tokens of all clips, L words of all, C channels, W words that texts are padded to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from radial.attention.packed.pack import Pack, Run

_TAKEN = {
    "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "guidance",
    "return_dict",
}  # fmt: skip


class PackedHunyuanVideo:
    """Of a ``HunyuanVideoTransformer3DModel`` whose blocks treat all of a clip's frames alike."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.blocks = [(block, _block) for block in transformer.transformer_blocks]
        self.blocks += [(block, _single_block) for block in transformer.single_transformer_blocks]

    def words(self, call: Mapping[str, Any]) -> int:
        return int(call["encoder_attention_mask"].sum())

    def refuse(self, call: Mapping[str, Any]) -> str | None:
        others = [name for name, value in call.items() if name not in _TAKEN and value is not None]
        return f"packed clips know nothing of {others[0]}" if others else None

    def forward(self, calls: Sequence[Mapping[str, Any]], pack: Pack, run: Run) -> list[Tensor]:
        model: Any = self._transformer
        latents = pack.stack([call["hidden_states"] for call in calls])
        with torch.compiler.set_stance("force_eager"):  # compiled along with blocks, once for each size
            hidden_1SC = pack.enter([model.x_embedder(x) for x in latents])
        turns = [model.rope(x) for x in latents]
        rotary = tuple(
            pack.enter([turn[half].expand(len(x), -1, -1) for turn, x in zip(turns, latents, strict=True)])[0]
            for half in (0, 1)
        )
        timestep, pooled = (torch.cat([call[name] for call in calls]) for name in ("timestep", "pooled_projections"))
        told = calls[0].get("guidance") is not None
        guidance = torch.cat([call["guidance"] for call in calls]) if told else None
        temb_BC, _ = model.time_text_embed(timestep, pooled, guidance)
        with torch.compiler.set_stance("force_eager"):
            text_1LC = self._read(calls, timestep, pack)
        for block, _ in self.blocks:
            hidden_1SC, text_1LC = run(block, hidden_1SC, text_1LC, temb_BC, rotary, pack)
        out = model.norm_out
        scale, shift = out.linear(out.silu(temb_BC).to(hidden_1SC.dtype)).chunk(2, dim=1)
        predicted = pack.leave(model.proj_out(pack.each(_modulated, out.norm(hidden_1SC), scale, shift)))
        patch = (model.config.patch_size_t, model.config.patch_size, model.config.patch_size)
        return [
            clip
            for group, x in zip(pack.groups, predicted, strict=True)
            for clip in _unpatch(x, group.layout.grid, patch).split(1)
        ]

    def _read(self, calls: Sequence[Mapping[str, Any]], timestep_B: Tensor, pack: Pack) -> Tensor:
        """All texts, refined as one batch, without their padding."""
        texts = [(call["encoder_hidden_states"], call["encoder_attention_mask"]) for call in calls]
        longest = max(text.shape[1] for text, _ in texts)
        text_BWC = torch.cat([F.pad(text, (0, 0, 0, longest - text.shape[1])) for text, _ in texts])
        mask_BW = torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for _, mask in texts])
        refined_BWC = self._transformer.context_embedder(text_BWC, timestep_B, mask_BW)
        return torch.cat([text[:words] for text, words in zip(refined_BWC, pack.words, strict=True)]).unsqueeze(0)


def _unpatch(x_NTP: Tensor, grid: Any, patch: Sequence[int]) -> Tensor:
    x = x_NTP.reshape(len(x_NTP), grid.frames, grid.height, grid.width, -1, *patch)
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return x + gate * update


def _block(
    block: Any, hidden_1SC: Tensor, text_1LC: Tensor, temb_BC: Tensor, rotary: tuple[Tensor, Tensor], pack: Pack
) -> tuple[Tensor, Tensor]:
    """``HunyuanVideoTransformerBlock``."""

    def parts(norm: Any) -> tuple[Tensor, ...]:
        return norm.linear(norm.silu(temb_BC)).chunk(6, dim=1)

    shift, scale, gate, ff_shift, ff_scale, ff_gate = parts(block.norm1)
    t_shift, t_scale, t_gate, t_ff_shift, t_ff_scale, t_ff_gate = parts(block.norm1_context)
    attended, text_attended = block.attn(
        hidden_states=pack.each(_modulated, block.norm1.norm(hidden_1SC), scale, shift),
        encoder_hidden_states=pack.each(
            _modulated, block.norm1_context.norm(text_1LC), t_scale, t_shift, words=True
        ),
        attention_mask=None, image_rotary_emb=rotary,
    )  # fmt: skip
    hidden_1SC = pack.each(_gated, hidden_1SC, attended, gate)
    text_1LC = pack.each(_gated, text_1LC, text_attended, t_gate, words=True)
    normed = pack.each(_modulated, block.norm2(hidden_1SC), ff_scale, ff_shift)
    normed_text = pack.each(_modulated, block.norm2_context(text_1LC), t_ff_scale, t_ff_shift, words=True)
    hidden_1SC = pack.each(_gated, hidden_1SC, block.ff(normed), ff_gate)
    return hidden_1SC, pack.each(_gated, text_1LC, block.ff_context(normed_text), t_ff_gate, words=True)


def _single_block(
    block: Any, hidden_1SC: Tensor, text_1LC: Tensor, temb_BC: Tensor, rotary: tuple[Tensor, Tensor], pack: Pack
) -> tuple[Tensor, Tensor]:
    """``HunyuanVideoSingleTransformerBlock``."""
    shift, scale, gate = block.norm.linear(block.norm.silu(temb_BC)).chunk(3, dim=1)
    normed = pack.each(_modulated, block.norm.norm(hidden_1SC), scale, shift)
    normed_text = pack.each(_modulated, block.norm.norm(text_1LC), scale, shift, words=True)
    inner = block.act_mlp(block.proj_mlp(torch.cat([normed, normed_text], 1)))
    attended = torch.cat(
        block.attn(
            hidden_states=normed, encoder_hidden_states=normed_text, attention_mask=None, image_rotary_emb=rotary
        ),
        1,
    )
    update, text_update = block.proj_out(torch.cat([attended, inner], 2)).tensor_split([hidden_1SC.shape[1]], 1)
    return pack.each(_gated, hidden_1SC, update, gate), pack.each(_gated, text_1LC, text_update, gate, words=True)
