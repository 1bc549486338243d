"""One transformer of every class that can be radial, tiny or as wide as the real one, and the arguments of a call.

Configurations that are left out are those of the real models: a real width takes few layers and many heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class FamilyCase:
    """A transformer class: its tiny configuration, what is cut at real width, and the arguments of a call.

    Attributes:
        layers: configuration entries that give it few layers, at any width.
        tiny: the rest of the tiny configuration.
        inputs: from the transformer, latent sizes (frames, height, width), batch and words to a call's arguments.
        latents: latent sizes of the tiny call.
        real_latents: the same of a call at the real width.
        other_tokens: whether text or history share the sequence.
    """

    kind: str
    layers: Config
    tiny: Config
    inputs: Callable[[Any, tuple[int, int, int], int], Inputs]
    latents: tuple[int, int, int] = (6, 12, 8)
    real_latents: tuple[int, int, int] = (13, 60, 104)
    other_tokens: bool = False

    def build(self, *, tiny: bool = True) -> Any:
        """The transformer with random weights; what is initialised to zero is given a value too."""
        import diffusers

        torch.manual_seed(0)
        config = self.layers | (self.tiny if tiny else {})
        transformer = getattr(diffusers, self.kind)(**config).eval()
        with torch.no_grad():
            for parameter in transformer.parameters():
                if parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return transformer


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def words(batch: int, total: int, valid: tuple[int, ...]) -> Tensor:
    """A mask of words, the first of which are valid; entries differ."""
    mask = torch.zeros(batch, total, dtype=torch.long)
    for entry in range(batch):
        mask[entry, : valid[entry % len(valid)]] = 1
    return mask


def wan(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    inputs = {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 12, config.text_dim),
    }
    if getattr(config, "image_dim", None):
        inputs["encoder_hidden_states_image"] = noise(batch, 5, config.image_dim)
    return inputs


def wan_vace(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    control = noise(batch, transformer.config.vace_in_channels, *latents)
    return wan(transformer, latents, batch) | {"control_hidden_states": control}


def wan_animate(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (frames, height, width) = transformer.config, latents
    side = config.motion_encoder_size
    return wan(transformer, latents, batch) | {
        "pose_hidden_states": noise(batch, config.latent_channels, frames - 1, height, width),
        "face_pixel_values": noise(batch, 3, 4 * (frames - 2) + 1, side, side),
        "encoder_hidden_states_image": noise(batch, 5, config.image_dim),
    }


def hunyuan(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 20, config.text_embed_dim),
        "encoder_attention_mask": words(batch, 20, (13, 7)),
        "pooled_projections": noise(batch, config.pooled_projection_dim),
        "guidance": torch.full((batch,), 6000.0),
    }


def framepack(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (_, height, width) = transformer.config, latents
    history = {"latents_clean": 2, "latents_history_2x": 2, "latents_history_4x": 16}
    inputs = hunyuan(transformer, latents, batch)
    inputs |= {"image_embeds": noise(batch, 9, config.image_proj_dim)}
    inputs |= {name: noise(batch, config.in_channels, frames, height, width) for name, frames in history.items()}
    order = torch.arange(1 + 16 + 2 + 1 + latents[0])
    first, far, middle, near, now = order.split([1, 16, 2, 1, latents[0]])
    return inputs | {
        "indices_latents": now,
        "indices_latents_clean": torch.cat([first, near]),
        "indices_latents_history_2x": middle,
        "indices_latents_history_4x": far,
    }


def hunyuan15(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 20, config.text_embed_dim),
        "encoder_attention_mask": words(batch, 20, (13, 7)),
        "encoder_hidden_states_2": noise(batch, 10, config.text_embed_2_dim),
        "encoder_attention_mask_2": words(batch, 10, (4, 6)),
        "image_embeds": torch.zeros(batch, 9, config.image_embed_dim),
    }


def mochi(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, config.max_sequence_length, config.text_embed_dim),
        "encoder_attention_mask": words(batch, config.max_sequence_length, (13, 7)).bool(),
    }


def ltx(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (frames, height, width) = transformer.config, latents
    return {
        "hidden_states": noise(batch, frames * height * width, config.in_channels),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 12, config.caption_channels),
        "encoder_attention_mask": words(batch, 12, (9, 5)),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def ltx2(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, sounds = transformer.config, 7
    return ltx(transformer, latents, batch) | {
        "audio_hidden_states": noise(batch, sounds, config.audio_in_channels),
        "audio_encoder_hidden_states": noise(batch, 12, config.caption_channels),
        "audio_encoder_attention_mask": words(batch, 12, (9, 5)),
        "audio_num_frames": sounds,
        "fps": 24.0,
        "timestep": torch.full((batch, 1), 500.0),
    }


def cogvideox(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (frames, height, width) = transformer.config, latents
    return {
        "hidden_states": noise(batch, frames, config.in_channels, height, width),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, config.max_text_seq_length, config.text_embed_dim),
    }


def allegro(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    config = transformer.config
    frames, height, width = latents[0], latents[1] // config.patch_size, latents[2] // config.patch_size
    *freqs, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        config.attention_head_dim, ((0, 0), (height, width)), (height, width), frames
    )
    places = torch.cartesian_prod(grid_t.long(), grid_h.long(), grid_w.long()).T
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 1, 12, config.caption_channels),
        "encoder_attention_mask": words(batch, 12, (9, 5)),
        "attention_mask": torch.ones(batch, *latents),
        "image_rotary_emb": (tuple(freqs), tuple(places[:, None])),
    }


def easyanimate(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 12, config.text_embed_dim),
    }


def cosmos(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, 12, config.text_embed_dim),
        "fps": 30,
    }


def kandinsky5(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (frames, height, width) = transformer.config, latents
    return {
        "hidden_states": noise(batch, frames, height, width, config.in_visual_dim),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 12, config.in_text_dim),
        "pooled_projections": noise(batch, config.in_text_dim2),
        "visual_rope_pos": [torch.arange(frames), torch.arange(height // 2), torch.arange(width // 2)],
        "text_rope_pos": torch.arange(12),
    }


def minimax_h3(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    """A clip with sound that starts from a keyframe, packed as its pipeline packs it."""
    from diffusers.modular_pipelines.minimax_h3.before_denoise import MiniMaxH3PrepareLayoutStep

    config, (frames, height, width) = transformer.config, latents
    rows = height * width // 4
    layout = MiniMaxH3PrepareLayoutStep.build_packed_sequence(
        torch.ones(9, dtype=torch.long), frames, height, width, 11, (1, 2, 2), 2, 2, 0, ("first",)
    )
    position_ids, token_tags, video_indices, audio_indices, text_indices, conditions, _ = layout
    assert conditions == rows
    times = torch.full((len(position_ids),), 0.25)  # of the clip; its sound is cleaner, its keyframe nearly clean
    times[audio_indices], times[video_indices[:rows]] = 0.5, 0.999
    timestep, timestep_indices = torch.unique(times, return_inverse=True)
    return {
        "hidden_states": noise(batch, (1 + frames) * rows, 4 * config.in_channels),
        "audio_hidden_states": noise(batch, 22, config.audio_in_channels),
        "encoder_hidden_states": noise(batch, 9, config.text_dim),
        "timestep": timestep, "timestep_indices": timestep_indices, "token_tags": token_tags,
        "position_ids": position_ids, "video_indices": video_indices, "audio_indices": audio_indices,
        "text_indices": text_indices,
    }  # fmt: skip


def anyflow(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (frames, height, width) = transformer.config, latents
    return {
        "hidden_states": noise(batch, frames, config.in_channels, height, width),
        "timestep": torch.full((batch, frames), 500.0),
        "r_timestep": torch.full((batch, frames), 250.0),
        "encoder_hidden_states": noise(batch, 12, config.text_dim),
    }


def kandinsky6(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config, (frames, height, width) = transformer.config, latents
    return {
        "hidden_states": noise(batch, frames, height, width, 2 * config.in_visual_dim + 1),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": noise(batch, 12, config.in_text_dim),
        "pooled_projections": noise(batch, config.in_text_dim2),
        "audio_hidden_states": noise(batch, 7, config.in_audio_dim),
        "encoder_attention_mask": words(batch, 12, (9, 5)).bool(),
    }


def motif_video(transformer: Any, latents: tuple[int, int, int], batch: int) -> Inputs:
    config = transformer.config
    return {
        "hidden_states": noise(batch, config.in_channels, *latents),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, 20, config.text_embed_dim),
        "encoder_attention_mask": words(batch, 20, (13, 7)).bool(),
        "image_embeds": noise(batch, 5, config.image_embed_dim),
    }


_HEADS = {"num_attention_heads": 2, "attention_head_dim": 24}
_WAN = _HEADS | {"text_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 64, "freq_dim": 32}
_HUNYUAN = _HEADS | {
    "in_channels": 4, "out_channels": 4, "rope_axes_dim": (8, 8, 8), "text_embed_dim": 16, "pooled_projection_dim": 8,
}  # fmt: skip
_COGVIDEOX = _HEADS | {
    "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 16, "sample_width": 8,
    "sample_height": 12, "sample_frames": 21, "max_text_seq_length": 12,
}  # fmt: skip

CASES: dict[str, FamilyCase] = {
    case.kind: case
    for case in (
        FamilyCase("WanTransformer3DModel", {"num_layers": 3}, _WAN, wan),
        FamilyCase(
            "WanVACETransformer3DModel", {"num_layers": 3, "vace_layers": [0, 2]}, _WAN | {"vace_in_channels": 8},
            wan_vace,
        ),
        FamilyCase(
            "WanAnimateTransformer3DModel", {"num_layers": 2, "inject_face_latents_blocks": 2},
            _WAN | {
                "in_channels": 12, "latent_channels": 4, "out_channels": 4, "image_dim": 8,
                "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16,
                "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16,
                "face_encoder_num_heads": 2,
            },
            wan_animate,
        ),
        FamilyCase("SkyReelsV2Transformer3DModel", {"num_layers": 3}, _WAN, wan),
        FamilyCase("ChronoEditTransformer3DModel", {"num_layers": 3}, _WAN, wan),
        FamilyCase(
            "HunyuanVideoTransformer3DModel", {"num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1},
            _HUNYUAN, hunyuan, other_tokens=True,
        ),
        FamilyCase(
            "HunyuanVideoFramepackTransformer3DModel",
            {
                "num_layers": 1, "num_single_layers": 2, "num_refiner_layers": 1, "has_image_proj": True,
                "has_clean_x_embedder": True, "image_condition_type": None,
            },
            _HUNYUAN | {"image_proj_dim": 8}, framepack, other_tokens=True,
        ),
        FamilyCase(
            "HunyuanVideo15Transformer3DModel", {"num_layers": 2, "num_refiner_layers": 1},
            _HEADS | {
                "in_channels": 4, "out_channels": 4, "rope_axes_dim": (8, 8, 8), "text_embed_dim": 16,
                "text_embed_2_dim": 8, "image_embed_dim": 8,
            },
            hunyuan15, latents=(6, 6, 4), real_latents=(13, 30, 53), other_tokens=True,
        ),
        FamilyCase(
            "MochiTransformer3DModel", {"num_layers": 3},
            _HEADS | {
                "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 16, "time_embed_dim": 4,
                "max_sequence_length": 16,
            },
            mochi, other_tokens=True,
        ),
        FamilyCase(
            "LTXVideoTransformer3DModel", {"num_layers": 2},
            _HEADS | {"in_channels": 8, "out_channels": 8, "cross_attention_dim": 48, "caption_channels": 16},
            ltx, latents=(6, 6, 4), real_latents=(21, 16, 22),
        ),
        FamilyCase(
            "LTX2VideoTransformer3DModel", {"num_layers": 2},
            _HEADS | {
                "in_channels": 8, "out_channels": 8, "cross_attention_dim": 48, "caption_channels": 16,
                "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
                "audio_attention_head_dim": 12, "audio_cross_attention_dim": 24,
            },
            ltx2, latents=(6, 6, 4), real_latents=(16, 16, 24),
        ),
        FamilyCase("CogVideoXTransformer3DModel", {"num_layers": 2}, _COGVIDEOX, cogvideox, real_latents=(13, 60, 90),
                   other_tokens=True),
        FamilyCase(
            "AllegroTransformer3DModel", {"num_layers": 2},
            _HEADS | {
                "cross_attention_dim": 48, "caption_channels": 16, "sample_height": 12, "sample_width": 8,
                "sample_frames": 6,
            },
            allegro, real_latents=(11, 45 * 2, 80 * 2),
        ),
        FamilyCase(
            "EasyAnimateTransformer3DModel",
            {"num_layers": 2, "mmdit_layers": 2, "in_channels": 16, "out_channels": 16, "patch_size": 2},
            {
                "num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 8, "text_embed_dim": 16,
                "sample_width": 8, "sample_height": 12,
            },
            easyanimate, real_latents=(13, 64, 64), other_tokens=True,
        ),
        FamilyCase(
            # Without its padding mask, which needs torchvision.
            "CosmosTransformer3DModel", {"num_layers": 2, "concat_padding_mask": False},
            _HEADS | {
                "in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "adaln_lora_dim": 4,
                "max_size": (32, 64, 64),
            },
            cosmos, real_latents=(16, 88, 160),
        ),
        FamilyCase(
            "Kandinsky5Transformer3DModel", {"num_text_blocks": 1, "num_visual_blocks": 2},
            {
                "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16, "model_dim": 48, "ff_dim": 64,
                "axes_dims": (8, 8, 8),
            },
            kandinsky5, real_latents=(31, 64, 96),
        ),
        FamilyCase(
            "MiniMaxH3Transformer3DModel", {"num_layers": 2, "num_refiner_layers": 1},
            _HEADS | {
                "hidden_size": 32, "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 4, "text_dim": 16,
                "freq_dim": 16, "time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 4,
            },
            minimax_h3, real_latents=(12, 48, 84), other_tokens=True,
        ),
        FamilyCase(
            "AnyFlowTransformer3DModel", {"num_layers": 2},
            {name: value for name, value in _WAN.items() if name != "rope_max_seq_len"} | {"in_channels": 4},
            anyflow,
        ),
        FamilyCase(
            "Kandinsky6Transformer3DModel",
            {
                "num_text_blocks": 1, "num_visual_blocks": 2, "ca_rope": True, "cross_gates": True,
                "fix_modulation": True,
            },
            {
                "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 16, "in_text_dim2": 8, "time_dim": 16,
                "model_dim": 48, "ff_dim": 64, "axes_dims": (8, 8, 8), "in_audio_dim": 4, "out_audio_dim": 4,
                "model_dim_a": 24, "ff_dim_a": 32, "axes_dims_a": (8, 8, 8),
            },
            kandinsky6, real_latents=(31, 64, 96),
        ),
        FamilyCase(
            "MotifVideoTransformer3DModel",
            {
                "num_layers": 1, "num_single_layers": 3, "num_decoder_layers": 1,
                "enable_text_cross_attention_dual": True, "image_embed_dim": 16,
            },
            _HEADS | {"in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "rope_axes_dim": (8, 8, 8)},
            motif_video, real_latents=(16, 92, 160), other_tokens=True,
        ),
    )
}  # fmt: skip
