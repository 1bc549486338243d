"""FramePack: the compressed history of the clip comes before the frames being made, image and text after them."""

from __future__ import annotations

import math
from typing import Any

from radial.attention.families.joint.hunyuan_video import FAMILY as HUNYUAN_VIDEO
from radial.attention.family import Call, Family, patch_sizes, patched_grid, with_text
from radial.plans.layout import Layout


def _layouts(transformer: Any, call: Call) -> tuple[Layout, ...]:
    grid = patched_grid(transformer, call["hidden_states"].shape[2:])
    history = 0
    for name, shrink in (("latents_clean", 1), ("latents_history_2x", 2), ("latents_history_4x", 4)):
        latents = call.get(name)
        if latents is not None:
            sizes = zip(latents.shape[2:], patch_sizes(transformer.config), strict=True)
            # Patches grow with age, and the last one is padded to be whole.
            history += math.prod(-(-size // (side * shrink)) for size, side in sizes)
    image = call["image_embeds"].shape[1]
    lengths = [image + length for length in call["encoder_attention_mask"].sum(1).int().tolist()]
    return with_text(grid, lengths, history=history)


FAMILY = Family(
    self_attentions=HUNYUAN_VIDEO.self_attentions, layouts=_layouts, masks_padding=True, fuse=HUNYUAN_VIDEO.fuse
)
