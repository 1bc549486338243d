"""From a transformer's class to its family."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from radial.attention.family import Family
from radial.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

# Transformer class -> module of this package that knows it.
FAMILIES = {
    "WanTransformer3DModel": "cross.wan",
    "WanVACETransformer3DModel": "cross.wan",
    "WanAnimateTransformer3DModel": "cross.wan",
    "SkyReelsV2Transformer3DModel": "cross.wan",
    "ChronoEditTransformer3DModel": "cross.wan",
    "HunyuanVideoTransformer3DModel": "joint.hunyuan_video",
    "HunyuanVideo15Transformer3DModel": "joint.hunyuan_video15",
    "HunyuanVideoFramepackTransformer3DModel": "joint.framepack",
    "MochiTransformer3DModel": "joint.mochi",
    "LTXVideoTransformer3DModel": "cross.ltx",
    "LTX2VideoTransformer3DModel": "cross.ltx",
    "CogVideoXTransformer3DModel": "joint.cogvideox",
    "ConsisIDTransformer3DModel": "joint.cogvideox",
    "AllegroTransformer3DModel": "cross.allegro",
    "EasyAnimateTransformer3DModel": "joint.easyanimate",
    "CosmosTransformer3DModel": "cross.cosmos",
    "Kandinsky5Transformer3DModel": "cross.kandinsky5",
    "MiniMaxH3Transformer3DModel": "joint.minimax_h3",
    "AnyFlowTransformer3DModel": "cross.anyflow",
    "Kandinsky6Transformer3DModel": "cross.kandinsky6",
    "MotifVideoTransformer3DModel": "joint.motif_video",
}

_IMPOSSIBLE = {
    "SanaVideoTransformer3DModel": "its self-attention is linear: there are no weights between tokens to leave out",
    "LatteTransformer3DModel": "it attends within a frame and across time in turn, so no layer sees the whole clip",
    "WanAnimate2Transformer3DModel": "its self-attention reads a cache of reference tokens outside the clip's grid, by "
    "block masks of its own",
    "Cosmos3OmniTransformer": "its clip looks at words that do not look back: queries and keys differ in number",
    "HeliosTransformer3DModel": "it attends to history tokens of several scales in an order of its own",
    "AnyFlowFARTransformer3DModel": "its attention is causal from chunk to chunk",
}


def find_family(transformer: nn.Module) -> Family:
    """The family of a loaded transformer.

    Raises:
        ModelError: no family knows this class, or it cannot be radial.
    """
    names = [kind.__name__ for kind in type(transformer).__mro__]
    if known := next((name for name in names if name in FAMILIES), None):
        family: Family = importlib.import_module(f"radial.attention.families.{FAMILIES[known]}").FAMILY
        return family
    if reason := _IMPOSSIBLE.get(names[0]):
        raise ModelError(f"{names[0]} cannot be radial: {reason}")
    raise ModelError(f"radial attention does not know {names[0]}; it knows {', '.join(sorted(FAMILIES))}")
