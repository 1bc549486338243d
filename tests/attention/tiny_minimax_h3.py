"""MiniMax-H3 tiny and with random weights, as its repository on the hub lies: an index of a modular pipeline beside one
of another, two transformers, a text encoder of more than 50 layers, and a processor with a part for videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import tiny_pipelines
import torch
import transformers

from radial.loading.modular import processor_class

SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CLIP = {"height": 16, "width": 24, "num_frames": 22}  # 7 latent frames of 2x3 tokens


def transformer(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=2, num_refiner_layers=1, ffn_dim=32,
        in_channels=4, audio_in_channels=4, text_dim=32, freq_dim=16, time_embed_hidden_dim=24, time_embed_dim=16,
        rope_freq_dim=2,
    )  # fmt: skip
    tiny_pipelines._enliven(made)
    return made.eval()


def _text_encoder(tokenizer: Any) -> Any:
    place = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    text = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 51,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=place["<|image_pad|>"],
        video_token_id=place["<|video_pad|>"], vision_start_token_id=place["<|vision_start|>"],
        vision_end_token_id=place["<|vision_end|>"],
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config)


def _vae() -> Any:
    return diffusers.AutoencoderKLMiniMaxH3(
        latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, spatial_downsample_factors=(2, 2),
        temporal_downsample_factors=(2, 2), norm_num_groups=8, decoder_num_layers=2, decoder_num_attention_heads=2,
        decoder_attention_head_dim=8, decoder_num_register_tokens=2, decoder_ffn_mult=2, latents_mean=(0.1,) * 4,
        latents_std=(1.5,) * 4,
    )  # fmt: skip


def _audio_vae() -> Any:
    return diffusers.AutoencoderKLMiniMaxH3Audio(
        encoder_dim=4, encoder_rates=(20, 40), latent_dim=16, latent_channels=4, num_attention_heads=2, decoder_dim=16,
        decoder_rates=(20, 40), decoder_kernel_sizes=(40, 80), resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3, 5),), latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def write_checkpoint(folder: Path) -> Path:
    """The checkpoint in a folder."""
    torch.manual_seed(0)
    tokenizer = tiny_pipelines._tokenizer(*SPECIAL)
    image = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 64, "max_pixels": 256}
    parts = {
        "text_encoder": _text_encoder(tokenizer), "vae": _vae(), "audio_vae": _audio_vae(),
        "transformer": transformer(), "transformer_ref": transformer(seed=1),
        "scheduler": diffusers.MiniMaxH3Scheduler(shift=12.0),
        "audio_scheduler": diffusers.MiniMaxH3Scheduler(shift=3.0), "tokenizer": tokenizer,
    }  # fmt: skip
    for name, part in parts.items():
        part.save_pretrained(folder / name, **({"max_shard_size": "600KB"} if hasattr(part, "parameters") else {}))
    tokenizer.save_pretrained(folder / "processor")
    images = transformers.Qwen2VLImageProcessor(**image).to_dict()
    videos = images | {"video_processor_type": "Qwen3VLVideoProcessor", "fps": 2, "do_sample_frames": True}
    images["image_processor_type"] = "Qwen2VLImageProcessor"
    del videos["image_processor_type"]
    told = {"processor_class": "Qwen3VLProcessor", "image_processor": images, "video_processor": videos}
    (folder / "processor" / "processor_config.json").write_text(json.dumps(told))
    classes = {name: ["diffusers", type(part).__name__] for name, part in parts.items()} | {
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"], "processor": ["transformers", "Qwen3VLProcessor"],
    }  # fmt: skip
    index = {
        name: [None, None, {
            "pretrained_model_name_or_path": "MiniMaxAI/MiniMax-H3", "revision": None, "subfolder": name,
            "type_hint": kind, "variant": None,
        }]
        for name, kind in classes.items()
    }  # fmt: skip
    index |= {
        "_blocks_class_name": "MiniMaxH3Blocks", "_class_name": "MiniMaxH3ModularPipeline",
        "_diffusers_version": "0.42.0", "canvas_max_pixels": 1032192, "canvas_short_edge": 768,
    }  # fmt: skip
    (folder / "modular_model_index.json").write_text(json.dumps(index))
    # Of the code that its authors put beside the weights, in a layout of their own.
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "MiniMaxH3Pipeline"}))
    (folder / "FL2VA").mkdir()
    (folder / "FL2VA" / "config.json").write_text("{}")
    return folder


def stock(folder: Path, task: str) -> Any:
    """diffusers' own pipeline of a task, as it loads itself; of the processor what needs no torchvision."""
    pipe = diffusers.MiniMaxH3ModularPipeline.from_pretrained(folder, workflow=task)
    pipe.load_components([name for name in pipe.pretrained_component_names if name != "processor"])
    pipe.update_components(processor=processor_class().from_pretrained(folder / "processor"))
    return pipe
