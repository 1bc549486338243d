"""What is known of a transformer class, and what its families have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from radial.errors import ModelError
from radial.plans.layout import Layout, TokenGrid

if TYPE_CHECKING:
    from torch import nn

    from radial.attention.packed.pack import PackedModel
    from radial.attention.token_order import TokenModules

Call = Mapping[str, Any]  # the arguments of a transformer's forward, by name


@dataclass(frozen=True)
class Family:
    """What :mod:`radial.attention.install` needs to know about a transformer class.

    Attributes:
        layouts: of a call: one for the whole batch, or one for each entry where their texts differ in length. Tokens
            beyond a layout's end are padding: nobody attends to them, and what they get is zeros. The clip alone when
            left out, of latents ``[B, C, T, H, W]``.
        self_attentions: the modules whose processor is replaced, each with the number of its layer; ``attn1`` of every
            block when left out.
        cross_attentions: the modules by which the clip reads its text, where it does so in no other way.
        masks_padding: whether an attention mask only keeps padded tokens out, which the layouts leave out already.
        refuse: why a call cannot be radial, or None.
        sharding: what is split and gathered where processes share a clip, in the terms of diffusers'
            ``_cp_plan``; None where that is not known. The tokens of the clip are split, all others are not.
        reorder: where the clip's tokens can be put in another order; None where that is not known.
        fuse: put fused kernels into the blocks of a transformer on a GPU, for good: how many blocks took them.
        packed: how clips of unlike sizes are computed together; None where that is not known.
        timestep: the clip's, of a call.
        clean_timestep: that of a clip without noise, which timesteps come nearer to step by step.
    """

    layouts: Callable[[Any, Call], tuple[Layout, ...]] = lambda transformer, call: (
        Layout.of(patched_grid(transformer, call["hidden_states"].shape[2:])),
    )
    self_attentions: Callable[[Any], list[tuple[int, nn.Module]]] = lambda transformer: numbered(
        transformer.transformer_blocks
    )
    cross_attentions: Callable[[Any], list[nn.Module]] | None = None
    masks_padding: bool = False
    refuse: Callable[[Any, Call], str | None] = lambda transformer, call: None
    sharding: Callable[[Any], dict[str, Any] | None] = lambda transformer: None
    reorder: Callable[[Any], TokenModules | None] = lambda transformer: None
    fuse: Callable[[Any], int] = lambda transformer: 0
    packed: Callable[[Any], PackedModel | None] = lambda transformer: None
    timestep: Callable[[Call], float] = lambda call: float(call["timestep"].flatten().max())
    clean_timestep: float = 0.0


def numbered(blocks: Any, attention: str = "attn1", first: int = 0) -> list[tuple[int, nn.Module]]:
    """The attention modules of that name in a list of blocks, with their layers."""
    return [(first + index, getattr(block, attention)) for index, block in enumerate(blocks)]


def patched_grid(transformer: Any, latents: tuple[int, ...]) -> TokenGrid:
    """The grid of latents of this many (frames, rows, columns), in the transformer's patches."""
    return TokenGrid(*(size // side for size, side in zip(latents, patch_sizes(transformer.config), strict=True)))


def patch_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Latents to a token along (frames, height, width), in the ways that transformers' configurations say it.

    Raises:
        ModelError: the configuration says something else.
    """
    patch = config.get("patch_size", (1, 2, 2))
    if isinstance(patch, int):
        return config.get("patch_size_t") or 1, patch, patch
    if isinstance(patch, (list, tuple)) and len(patch) == 3:
        return tuple(patch)
    raise ModelError(f"a patch size that is not three numbers: {patch!r}")


def split_at(first_block: str, rotary: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """A plan that splits these ``arguments`` of the first block along their tokens, and gathers ``proj_out``."""
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    entering = {name: ContextParallelInput(split_dim=1, expected_dims=3) for name in arguments}
    return {**rotary, first_block: entering, "proj_out": ContextParallelOutput(gather_dim=1)}


def rotary_outputs(dim: int) -> dict[str, Any]:
    """A plan that splits the cosines and sines that ``rope`` returns, along their tokens at ``dim``."""
    from diffusers.models._modeling_parallel import ContextParallelInput

    return {"rope": {index: ContextParallelInput(split_dim=dim, split_output=True) for index in (0, 1)}}


def with_text(grid: TokenGrid, lengths: list[int], history: int = 0) -> tuple[Layout, ...]:
    """Layouts with texts of these lengths after the clip, and so much history before it; one layout where all lengths
    are the same."""
    layouts = tuple(Layout.of(grid, before=history, after=length, kind_before="history") for length in lengths)
    return layouts[:1] if len(set(layouts)) == 1 else layouts
