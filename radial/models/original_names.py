"""What a transformer's authors call its layers: the names of single files and of most adapters.

Rules run from diffusers' names to the authors', as regular expressions that are tried in turn, each on what the one
before left. ``|v`` behind a name says that the authors keep the layer as the part of a larger one that makes values
(queries, keys and values in one product), ``|swap`` that its two halves stand the other way round. Sources: diffusers'
``loaders/single_file_utils.py`` and its conversion scripts, which state the same in the other direction.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WAN = (
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^condition_embedder\.image_embedder\.pos_embed", "img_emb.emb_pos"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"^fps_projection\.net\.0\.proj", "fps_projection.0"),
    (r"^fps_projection\.net\.2", "fps_projection.2"),
    (r"^(vace_blocks\.\d+)\.proj_in", r"\1.before_proj"),
    (r"^(vace_blocks\.\d+)\.proj_out", r"\1.after_proj"),
    (r"blocks\.(\d+)\.scale_shift_table", r"blocks.\1.modulation"),
    (r"blocks\.(\d+)\.attn1\.", r"blocks.\1.self_attn."),
    (r"blocks\.(\d+)\.attn2\.", r"blocks.\1.cross_attn."),
    (r"blocks\.(\d+)\.norm2$", r"blocks.\1.norm3"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj", r"blocks.\1.ffn.0"),
    (r"blocks\.(\d+)\.ffn\.net\.2", r"blocks.\1.ffn.2"),
    (r"_attn\.to_([qkv])$", r"_attn.\1"),
    (r"_attn\.to_out\.0$", "_attn.o"),
    (r"_attn\.add_([kv])_proj$", r"_attn.\1_img"),
    (r"_attn\.norm_added_k$", "_attn.norm_k_img"),
    (r"^face_adapter\.(\d+)\.", r"face_adapter.fuser_blocks.\1."),
    (r"^(face_adapter\..+)\.to_q$", r"\1.linear1_q"),
    (r"^(face_adapter\..+)\.to_([kv])$", r"\1.linear1_kv|\2"),
    (r"^(face_adapter\..+)\.to_out$", r"\1.linear2"),
    (r"^(face_adapter\..+)\.norm_([qk])$", r"\1.\2_norm"),
)
_HUNYUAN = (
    (r"^x_embedder", "img_in"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^context_embedder\.", "txt_in."),
    (r"^txt_in\.time_text_embed\.timestep_embedder\.linear_1", "txt_in.t_embedder.mlp.0"),
    (r"^txt_in\.time_text_embed\.timestep_embedder\.linear_2", "txt_in.t_embedder.mlp.2"),
    (r"^txt_in\.time_text_embed\.text_embedder", "txt_in.c_embedder"),
    (r"^txt_in\.proj_in", "txt_in.input_embedder"),
    (r"^txt_in\.token_refiner\.refiner_blocks\.", "txt_in.individual_token_refiner.blocks."),
    (r"^(txt_in\..+)\.attn\.to_([qkv])$", r"\1.self_attn_qkv|\2"),
    (r"^(txt_in\..+)\.attn\.to_out\.0$", r"\1.self_attn_proj"),
    (r"^(txt_in\..+)\.ff\.net\.0\.proj", r"\1.mlp.fc1"),
    (r"^(txt_in\..+)\.ff\.net\.2", r"\1.mlp.fc2"),
    (r"^(txt_in\..+)\.norm_out\.linear", r"\1.adaLN_modulation.1"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"^(double_.+)\.norm1\.linear", r"\1.img_mod.linear"),
    (r"^(double_.+)\.norm1_context\.linear", r"\1.txt_mod.linear"),
    (r"^(double_.+)\.attn\.norm_([qk])$", r"\1.img_attn_\2_norm"),
    (r"^(double_.+)\.attn\.norm_added_([qk])$", r"\1.txt_attn_\2_norm"),
    (r"^(double_.+)\.attn\.to_([qkv])$", r"\1.img_attn_qkv|\2"),
    (r"^(double_.+)\.attn\.add_([qkv])_proj$", r"\1.txt_attn_qkv|\2"),
    (r"^(double_.+)\.attn\.to_out\.0$", r"\1.img_attn_proj"),
    (r"^(double_.+)\.attn\.to_add_out$", r"\1.txt_attn_proj"),
    (r"^(double_.+)\.ff\.net\.0\.proj", r"\1.img_mlp.fc1"),
    (r"^(double_.+)\.ff\.net\.2", r"\1.img_mlp.fc2"),
    (r"^(double_.+)\.ff_context\.net\.0\.proj", r"\1.txt_mlp.fc1"),
    (r"^(double_.+)\.ff_context\.net\.2", r"\1.txt_mlp.fc2"),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"^(single_.+)\.attn\.to_([qkv])$", r"\1.linear1|\2"),
    (r"^(single_.+)\.proj_mlp", r"\1.linear1|mlp"),
    (r"^(single_.+)\.proj_out", r"\1.linear2"),
    (r"^(single_.+)\.norm\.linear", r"\1.modulation.linear"),
    (r"^(single_.+)\.attn\.norm_([qk])$", r"\1.\2_norm"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1|swap"),
    (r"^proj_out", "final_layer.linear"),
)
# HunyuanVideo 1.5 keeps queries, keys and values apart, and reads glyphs and images by embedders of their own.
_HUNYUAN_15 = (
    (r"^time_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
    (r"^time_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
    (r"^cond_type_embed", "cond_type_embedding"),
    (r"^context_embedder_2\.norm", "byt5_in.layernorm"),
    (r"^context_embedder_2\.linear_(\d)", r"byt5_in.fc\1"),
    (r"^image_embedder\.norm_in", "vision_in.proj.0"),
    (r"^image_embedder\.linear_1", "vision_in.proj.1"),
    (r"^image_embedder\.linear_2", "vision_in.proj.3"),
    (r"^image_embedder\.norm_out", "vision_in.proj.4"),
    (r"^transformer_blocks\.(\d+)\.attn\.to_([qkv])$", r"double_blocks.\1.img_attn_\2"),
    (r"^transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj$", r"double_blocks.\1.txt_attn_\2"),
    *_HUNYUAN,
)
_LTX = (
    (r"^proj_in", "patchify_proj"),
    (r"^time_embed", "adaln_single"),
    (r"^((?:audio_)?prompt_adaln)", r"\1_single"),
    (r"\.norm_([qk])$", r".\1_norm"),
    (r"^audio_proj_in", "audio_patchify_proj"),
    (r"^audio_time_embed", "audio_adaln_single"),
    (r"^av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
    (r"^av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
    (r"^av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
    (r"^av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
    (r"\.(video|audio)_a2v_cross_attn_scale_shift_table", r".scale_shift_table_a2v_ca_\1"),
)
_MOCHI = (
    (r"^patch_embed\.proj", "x_embedder.proj"),
    (r"^time_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_embed\.pooler", "t5_y_embedder"),
    (r"^time_embed\.caption_proj", "t5_yproj"),
    (r"^transformer_blocks\.", "blocks."),
    (r"^(blocks\.\d+)\.norm1\.linear", r"\1.mod_x"),
    (r"^(blocks\.\d+)\.norm1_context\.linear(_1)?", r"\1.mod_y"),
    (r"^(blocks\.\d+)\.attn1\.to_([qkv])$", r"\1.attn.qkv_x|\2"),
    (r"^(blocks\.\d+)\.attn1\.add_([qkv])_proj$", r"\1.attn.qkv_y|\2"),
    (r"^(blocks\.\d+)\.attn1\.norm_([qk])$", r"\1.attn.\2_norm_x"),
    (r"^(blocks\.\d+)\.attn1\.norm_added_([qk])$", r"\1.attn.\2_norm_y"),
    (r"^(blocks\.\d+)\.attn1\.to_out\.0$", r"\1.attn.proj_x"),
    (r"^(blocks\.\d+)\.attn1\.to_add_out$", r"\1.attn.proj_y"),
    (r"^(blocks\.\d+)\.ff\.net\.0\.proj", r"\1.mlp_x.w1|swap"),
    (r"^(blocks\.\d+)\.ff\.net\.2", r"\1.mlp_x.w2"),
    (r"^(blocks\.\d+)\.ff_context\.net\.0\.proj", r"\1.mlp_y.w1|swap"),
    (r"^(blocks\.\d+)\.ff_context\.net\.2", r"\1.mlp_y.w2"),
    (r"^norm_out\.linear", "final_layer.mod|swap"),
    (r"^proj_out", "final_layer.linear"),
)
_COSMOS = (
    (r"^time_embed\.t_embedder", "t_embedder.1"),
    (r"^time_embed\.norm", "affline_norm"),
    (r"^patch_embed\.proj", "x_embedder.proj.1"),
    (r"^learnable_pos_embed", "extra_pos_embedder"),
    (r"^norm_out\.linear_([12])", r"final_layer.adaLN_modulation.\1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks\.(\d+)\.", r"blocks.block\1."),
    (r"\.attn([12])\.norm_([qk])$", r".attn\1.to_\2.1"),
    (r"\.attn([12])\.to_([qkv])$", r".attn\1.to_\2.0"),
    (r"\.attn1\.", ".blocks.0.block.attn."),
    (r"\.attn2\.", ".blocks.1.block.attn."),
    (r"\.ff\.net\.0\.proj", ".blocks.2.block.layer1"),
    (r"\.ff\.net\.2", ".blocks.2.block.layer2"),
    (r"\.norm1\.linear_([12])", r".blocks.0.adaLN_modulation.\1"),
    (r"\.norm2\.linear_([12])", r".blocks.1.adaLN_modulation.\1"),
    (r"\.norm3\.linear_([12])", r".blocks.2.adaLN_modulation.\1"),
)
_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "WanAnimateTransformer3DModel": _WAN,
    "SkyReelsV2Transformer3DModel": _WAN,
    "ChronoEditTransformer3DModel": _WAN,
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "HunyuanVideoFramepackTransformer3DModel": _HUNYUAN,
    "HunyuanVideo15Transformer3DModel": _HUNYUAN_15,
    "LTXVideoTransformer3DModel": _LTX,
    "LTX2VideoTransformer3DModel": _LTX,
    "MochiTransformer3DModel": _MOCHI,
    "CosmosTransformer3DModel": _COSMOS,
}
PARTS = ("q", "k", "v", "mlp")  # of a larger layer, in this order
# ComfyUI has queries, keys and values of HunyuanVideo 1.5 in one, as of the first HunyuanVideo.
_ALSO = {"HunyuanVideo15Transformer3DModel": "HunyuanVideoTransformer3DModel"}
# What ComfyUI calls layers of its own copies of these models, as the authors' names.
_COMFY: tuple[tuple[str, str], ...] = (
    (r"^(double_blocks\.\d+\.(?:img|txt)_mod)\.lin$", r"\1.linear"),
    (r"^(single_blocks\.\d+\.modulation)\.lin$", r"\1.linear"),
    (r"^(double_blocks\.\d+\.(?:img|txt)_mlp)\.0$", r"\1.fc1"),
    (r"^(double_blocks\.\d+\.(?:img|txt)_mlp)\.2$", r"\1.fc2"),
    (r"^(double_blocks\.\d+\.(?:img|txt)_attn)\.norm\.(query|key)_norm$", r"\1_\2_norm"),
    (r"^(single_blocks\.\d+)\.norm\.(query|key)_norm$", r"\1.\2_norm"),
    (r"^((?:time|guidance)_in)\.in_layer$", r"\1.mlp.0"),
    (r"^((?:time|guidance)_in)\.out_layer$", r"\1.mlp.2"),
    (r"^(txt_in\.t_embedder)\.in_layer$", r"\1.mlp.0"),
    (r"^(txt_in\.t_embedder)\.out_layer$", r"\1.mlp.2"),
    (r"^(txt_in\.c_embedder)\.in_layer$", r"\1.linear_1"),
    (r"^(txt_in\.c_embedder)\.out_layer$", r"\1.linear_2"),
    (r"^(txt_in\.individual.+\.mlp)\.0$", r"\1.fc1"),
    (r"^(txt_in\.individual.+\.mlp)\.2$", r"\1.fc2"),
)


@dataclass(frozen=True)
class Part:
    """The layer of a model in a layer of its authors', or of diffusers'.

    Attributes:
        layer: diffusers' name of a module with a weight, or of a parameter that stands alone.
        rows: which rows of the authors' weight make it, in this order, as (first, beyond the last).
        whole: rows of the authors' weight.
    """

    layer: str
    rows: tuple[tuple[int, int], ...]
    whole: int

    def parameter(self, name: str, parameters: Collection[str]) -> str:
        """The whole name of one of its parameters; one that stands alone has no more than the layer's."""
        return self.layer if self.layer in parameters else f"{self.layer}.{name}"

    def of(self, whole: Tensor) -> Tensor:
        """Its rows of the authors' weight."""
        if self.rows == ((0, self.whole),):
            return whole
        import torch

        return torch.cat([whole[first:end] for first, end in self.rows])


@functools.lru_cache(1 << 16)
def original_name(kind: str, layer: str) -> tuple[str, str]:
    """What the authors call a layer of diffusers' class ``kind``: the name, and the mark behind it."""
    for pattern, name in _RULES.get(kind, ()):
        layer = re.sub(pattern, name, layer)
    name, _, mark = layer.partition("|")
    return name, mark


def original_layers(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Part, ...]]:
    """The layers of a transformer by its authors' names.

    Args:
        kind: the class's name.
        shapes: of its parameters, by diffusers' names.

    Returns:
        The parts of each of the authors' layers, in their order.
    """
    found: dict[str, tuple[Part, ...]] = {}
    fused: dict[str, dict[int, str]] = defaultdict(dict)
    rows = _rows_of(shapes)
    for layer, count in rows.items():
        name, mark = original_name(kind, layer)
        if mark in PARTS:
            fused[name][PARTS.index(mark)] = layer
        else:
            half = count // 2
            found[name] = (Part(layer, ((half, count), (0, half)) if mark == "swap" else ((0, count),), count),)
    for name, parts in fused.items():
        whole, first, cut = sum(rows[layer] for layer in parts.values()), 0, []
        for _, layer in sorted(parts.items()):
            cut.append(Part(layer, ((first, first + rows[layer]),), whole))
            first += rows[layer]
        found[name] = tuple(cut)
    return found


def index_layers(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Part, ...]]:
    """The layers of a transformer by the :func:`plain_name` of what diffusers and its authors call them."""
    own: dict[str, tuple[Part, ...]] = {
        plain_name(layer): (Part(layer, ((0, count),), count),) for layer, count in _rows_of(shapes).items()
    }
    for also in (_ALSO.get(kind, kind), kind):
        own |= {plain_name(name): parts for name, parts in original_layers(also, shapes).items()}
    return own


def _rows_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The rows of each layer's weight, or of what it has in its place."""
    rows: dict[str, int] = {}
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight").removesuffix(".bias")
        if layer not in rows or name.endswith(".weight"):
            rows[layer] = shape[0] if shape else 1
    return rows


@functools.lru_cache(1 << 16)
def plain_name(layer: str) -> str:
    """A layer's name as trainers write it that know no dots, and ComfyUI's as the authors'."""
    for pattern, name in _COMFY:
        layer = re.sub(pattern, name, layer)
    return layer.replace("query_norm", "q_norm").replace("key_norm", "k_norm").replace(".", "_")
