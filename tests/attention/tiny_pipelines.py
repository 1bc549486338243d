"""Real diffusers video pipelines, tiny and with random weights: one or more of every family that can be radial.

Nothing is loaded from the hub: tokenizers are trained on a sentence, and text and image encoders are the real classes
with small configurations. Clips are 5 latent frames of 4x6 tokens unless a pipeline adds frames of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

Arguments = dict[str, Any]

PROMPT = "a red circle moves to the left"
NEGATIVE = "blurry"
HEIGHT, WIDTH, FRAMES = 64, 96, 17  # 8 pixels to a latent, 2 latents to a token; 4 frames to a latent frame
VOCABULARY = 320
TEXT_WIDTH = 32  # of what text encoders give
WORDS = 32  # that prompts are padded to
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}\n{% endfor %}"
)


@dataclass(frozen=True)
class TinyCase:
    """A pipeline and a call of it.

    Attributes:
        build: the pipeline, always with the same weights.
        call: from the pipeline, keyword arguments of one call that ends with latents; they hold no generator.
        frames_output: the attribute of the output that has the result.
    """

    name: str
    build: Callable[[], Any]
    call: Callable[[Any], Arguments]
    frames_output: str = "frames"

    def latents(self, output: Any) -> Tensor:
        """The latents in what a call gave."""
        result = getattr(output, self.frames_output)
        return result[-1] if isinstance(result, list) else result  # FramePack: the clip after each section


# What pipelines are made of.


def _tokenizer(*special: str) -> Any:
    """A tokenizer of bytes and the pieces of one sentence; sentences end with ``</s>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", *special], initial_alphabet=alphabet
    )
    words.train_from_iterator([PROMPT], trainer)
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _t5(kind: str = "T5", **changes: Any) -> Any:
    """The encoder of T5 or UMT5."""
    config = {"vocab_size": VOCABULARY, "d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    config |= {"is_encoder_decoder": False} | changes
    return getattr(transformers, f"{kind}EncoderModel")(getattr(transformers, f"{kind}Config")(**config))


def _language_model(kind: str, **changes: Any) -> Any:
    """A configuration of a decoder: Llama's or one of Qwen's."""
    return getattr(transformers, kind)(
        vocab_size=VOCABULARY, hidden_size=TEXT_WIDTH, intermediate_size=37, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=1, **changes,
    )  # fmt: skip


def _clip_text() -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return transformers.CLIPTextModel(config)


_SMALL_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 2,
}  # fmt: skip
_IMAGE_PATCHES = 16


def _clip_vision() -> Arguments:
    """Image encoder and processor, of 16 patches and one token for the class."""
    return {
        "image_encoder": transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_SMALL_VISION)),
        "image_processor": transformers.CLIPImageProcessor(size=8, crop_size=8),
    }


def _picture(height: int = HEIGHT, width: int = WIDTH, *, turned: bool = False) -> Image.Image:
    """A gradient from top to bottom, or from left to right."""
    gradient = Image.linear_gradient("L")
    return (gradient.rotate(90) if turned else gradient).resize((width, height)).convert("RGB")


def _arguments(**changes: Any) -> Arguments:
    """A call with guidance, from a prompt to latents in two steps."""
    arguments = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "height": HEIGHT, "width": WIDTH, "num_frames": FRAMES,
        "num_inference_steps": 2, "guidance_scale": 3.0, "max_sequence_length": WORDS, "output_type": "latent",
    }  # fmt: skip
    return {name: value for name, value in (arguments | changes).items() if value is not None}


def _enliven(transformer: nn.Module) -> None:
    """Give every parameter that is constant some noise: layers that start as zero would hide all attention."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.numel() > 1 and parameter.std() == 0:
                parameter.add_(torch.randn_like(parameter) * 0.02)


def _build(make: Callable[[], Any]) -> Any:
    """A pipeline that is ready to be called."""
    torch.manual_seed(0)
    pipe = make()
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            component.eval()
            if name.startswith("transformer"):
                _enliven(component)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Wan and SkyReels.


def _wan_parts() -> Arguments:
    """All of a Wan pipeline but its transformers."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {"tokenizer": _tokenizer(), "text_encoder": _t5("UMT5"), "vae": vae, "scheduler": scheduler}


def _wan_transformer(kind: str = "WanTransformer3DModel", **changes: Any) -> Any:
    config = {
        "num_attention_heads": 2, "attention_head_dim": 32, "text_dim": TEXT_WIDTH, "ffn_dim": 64, "num_layers": 3,
        "rope_max_seq_len": 64,
    }  # fmt: skip
    return getattr(diffusers, kind)(**config | changes)


# With images, 16 latent channels of noise, 16 of the images and 4 of a mask.
_WAN_IMAGE = {"in_channels": 36, "out_channels": 16, "image_dim": 16, "added_kv_proj_dim": 64}
# Cross-attention with images counts on 512 words.
_WAN_IMAGE_WORDS = 512


def _wan() -> Any:
    return diffusers.WanPipeline(**_wan_parts(), transformer=_wan_transformer())


def _anyflow() -> Any:
    parts = _wan_parts() | {"scheduler": diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)}
    transformer = diffusers.AnyFlowTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, text_dim=TEXT_WIDTH, ffn_dim=64, num_layers=3, freq_dim=32
    )
    return diffusers.AnyFlowPipeline(**parts, transformer=transformer)


def _wan_i2v() -> Any:
    transformer = _wan_transformer(**_WAN_IMAGE)
    return diffusers.WanImageToVideoPipeline(**_wan_parts(), **_clip_vision(), transformer=transformer)


def _wan_flf() -> Any:
    transformer = _wan_transformer(**_WAN_IMAGE, pos_embed_seq_len=2 * (_IMAGE_PATCHES + 1))
    return diffusers.WanImageToVideoPipeline(**_wan_parts(), **_clip_vision(), transformer=transformer)


def _wan22() -> Any:
    return diffusers.WanPipeline(
        **_wan_parts(), transformer=_wan_transformer(), transformer_2=_wan_transformer(), boundary_ratio=0.875
    )


def _wan22_ti2v() -> Any:
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=48, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16,
        latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
    )  # fmt: skip
    transformer = _wan_transformer(in_channels=48, out_channels=48)
    return diffusers.WanPipeline(**_wan_parts() | {"vae": vae}, transformer=transformer, expand_timesteps=True)


def _wan_vace() -> Any:
    transformer = _wan_transformer("WanVACETransformer3DModel", vace_layers=[0, 2], vace_in_channels=96)
    return diffusers.WanVACEPipeline(**_wan_parts(), transformer=transformer)


def _wan_vace_call(pipe: Any) -> Arguments:
    return _arguments(
        video=[_picture()] * FRAMES,
        mask=[_picture(turned=True).convert("L")] * FRAMES,
        reference_images=[_picture()],  # one more latent frame
    )


def _wan_v2v() -> Any:
    return diffusers.WanVideoToVideoPipeline(**_wan_parts(), transformer=_wan_transformer())


def _v2v_call(pipe: Any) -> Arguments:
    return _arguments(num_frames=None, video=[_picture()] * FRAMES, strength=0.5, num_inference_steps=4)


def _wan_animate() -> Any:
    transformer = _wan_transformer(
        "WanAnimateTransformer3DModel",
        **_WAN_IMAGE,
        num_layers=4,
        latent_channels=16,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return diffusers.WanAnimatePipeline(**_wan_parts(), **_clip_vision(), transformer=transformer)


def _wan_animate_call(pipe: Any) -> Arguments:
    return _arguments(
        num_frames=None,
        segment_frame_length=FRAMES,
        image=_picture(),  # one more latent frame
        pose_video=[_picture(turned=True)] * FRAMES,
        face_video=[_picture(16, 16)] * FRAMES,
        max_sequence_length=_WAN_IMAGE_WORDS,
    )


def _chronoedit() -> Any:
    transformer = _wan_transformer("ChronoEditTransformer3DModel", **_WAN_IMAGE)
    return diffusers.ChronoEditPipeline(**_wan_parts(), **_clip_vision(), transformer=transformer)


def _skyreels_v2() -> Any:
    return diffusers.SkyReelsV2Pipeline(**_wan_parts(), transformer=_wan_transformer("SkyReelsV2Transformer3DModel"))


def _skyreels_v2_i2v() -> Any:
    transformer = _wan_transformer("SkyReelsV2Transformer3DModel", **_WAN_IMAGE)
    return diffusers.SkyReelsV2ImageToVideoPipeline(**_wan_parts(), **_clip_vision(), transformer=transformer)


def _skyreels_v2_df() -> Any:
    transformer = _wan_transformer("SkyReelsV2Transformer3DModel", inject_sample_info=True)
    return diffusers.SkyReelsV2DiffusionForcingPipeline(**_wan_parts(), transformer=transformer)


# HunyuanVideo.

_TRUE_GUIDANCE = {"guidance_scale": 1.0, "true_cfg_scale": 3.0}  # by a second call, not as an input of the model


def _hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def _hunyuan_parts() -> Arguments:
    """All of a HunyuanVideo pipeline but its transformer."""
    return {
        "tokenizer": _tokenizer(),
        "text_encoder": transformers.LlamaModel(_language_model("LlamaConfig")),
        "tokenizer_2": _tokenizer(),
        "text_encoder_2": _clip_text(),
        "vae": _hunyuan_vae(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    }


def _hunyuan_transformer(kind: str = "HunyuanVideoTransformer3DModel", **changes: Any) -> Any:
    config = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
        "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": TEXT_WIDTH, "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 6, 6),
    }  # fmt: skip
    return getattr(diffusers, kind)(**config | changes)


def _hunyuan_video() -> Any:
    return diffusers.HunyuanVideoPipeline(**_hunyuan_parts(), transformer=_hunyuan_transformer())


def _hunyuan_video_call(pipe: Any) -> Arguments:
    prompts = {"prompt": [PROMPT, "a red circle"], "negative_prompt": [NEGATIVE, "grey"]}  # of different lengths
    return _arguments(**prompts, **_TRUE_GUIDANCE, prompt_template={"template": "{}", "crop_start": 0})


_LLAVA_SPECIAL = ("<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "system", "user", "assistant")
_LLAVA_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|><image>a clip<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
)


def _llava(tokenizer: Any) -> Any:
    """A language model that sees an image in the place of ``<image>``."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_SMALL_VISION),
        text_config=_language_model("LlamaConfig"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=_IMAGE_PATCHES,
    )
    config.pad_token_id = 0
    return transformers.LlavaForConditionalGeneration(config)


def _hunyuan_video_i2v() -> Any:
    tokenizer = _tokenizer(*_LLAVA_SPECIAL)
    parts = _hunyuan_parts() | {"tokenizer": tokenizer, "text_encoder": _llava(tokenizer)}
    return diffusers.HunyuanVideoImageToVideoPipeline(
        **parts,
        image_processor=transformers.CLIPImageProcessor(size=8, crop_size=8),
        transformer=_hunyuan_transformer(image_condition_type="token_replace"),
    )


def _hunyuan_video_i2v_call(pipe: Any) -> Arguments:
    before_prompt = pipe.tokenizer(_LLAVA_TEMPLATE.split("{}")[0], add_special_tokens=False).input_ids
    start = before_prompt.index(pipe.text_encoder.config.image_token_index)
    template = {
        "template": _LLAVA_TEMPLATE, "crop_start": len(before_prompt), "image_emb_len": _IMAGE_PATCHES,
        "image_emb_start": start, "image_emb_end": start + _IMAGE_PATCHES,
    }  # fmt: skip
    return _arguments(image=_picture(), **_TRUE_GUIDANCE, prompt_template=template)


def _hunyuan_video15(kind: str = "HunyuanVideo15Pipeline", task: str = "t2v", **parts: Any) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_refiner_layers=1, text_embed_dim=TEXT_WIDTH, text_embed_2_dim=TEXT_WIDTH, image_embed_dim=12,
        rope_axes_dim=(4, 6, 6), target_size=64, task_type=task,
    )  # fmt: skip
    pipe = getattr(diffusers, kind)(
        tokenizer=_tokenizer(),
        text_encoder=transformers.Qwen2_5_VLTextModel(_language_model("Qwen2_5_VLTextConfig", rope_parameters=rope)),
        tokenizer_2=transformers.ByT5Tokenizer(),
        text_encoder_2=_t5(vocab_size=384),
        vae=diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1,
            downsample_match_channel=False, upsample_match_channel=False,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
        transformer=transformer,
        **parts,
    )  # fmt: skip
    pipe.system_message, pipe.prompt_template_encode_start_idx = "a clip", 4
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = WORDS, 16, 9
    return pipe


def _hunyuan_video15_i2v() -> Any:
    vision = transformers.SiglipVisionConfig(**_SMALL_VISION | {"hidden_size": 12, "num_attention_heads": 2})
    parts = {
        "image_encoder": transformers.SiglipVisionModel(vision),
        "feature_extractor": transformers.SiglipImageProcessor(size={"height": 8, "width": 8}),
    }
    return _hunyuan_video15("HunyuanVideo15ImageToVideoPipeline", "i2v", **parts)


def _hunyuan_video15_i2v_call(pipe: Any) -> Arguments:
    # It takes its size from the image and a size of its own.
    pipe.target_size = HEIGHT
    return {name: value for name, value in _hunyuan_video15_call(pipe).items() if name not in ("height", "width")} | {
        "image": _picture()
    }


def _hunyuan_video15_call(pipe: Any) -> Arguments:
    # What is quoted goes to the second text encoder.
    return _arguments(prompt='a sign with "red"', guidance_scale=None, max_sequence_length=None)


def _framepack() -> Any:
    vision = transformers.SiglipVisionConfig(**_SMALL_VISION)
    transformer = _hunyuan_transformer(
        "HunyuanVideoFramepackTransformer3DModel",
        has_image_proj=True,
        image_proj_dim=vision.hidden_size,
        has_clean_x_embedder=True,
    )
    return diffusers.HunyuanVideoFramepackPipeline(
        **_hunyuan_parts(),
        image_encoder=transformers.SiglipVisionModel(vision),
        feature_extractor=transformers.SiglipImageProcessor(size={"height": 8, "width": 8}),
        transformer=transformer,
    )


def _framepack_call(pipe: Any) -> Arguments:
    return _arguments(
        image=_picture(),
        num_frames=FRAMES + 4,  # two sections
        latent_window_size=5,
        **_TRUE_GUIDANCE,
        prompt_template={"template": "{}", "crop_start": 0},
    )


# All others.


def _t5_parts() -> Arguments:
    return {"tokenizer": _tokenizer(), "text_encoder": _t5()}


def _mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, pooled_projection_dim=16, in_channels=12,
        text_embed_dim=TEXT_WIDTH, time_embed_dim=16, max_sequence_length=WORDS,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.MochiPipeline(**_t5_parts(), vae=vae, scheduler=scheduler, transformer=transformer)


def _ltx(kind: str = "LTXPipeline") -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=2, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return getattr(diffusers, kind)(**_t5_parts(), vae=vae, scheduler=scheduler, transformer=transformer)


def _ltx_i2v() -> Any:
    return _ltx("LTXImageToVideoPipeline")


def _ltx_condition() -> Any:
    return _ltx("LTXConditionPipeline")


def _ltx_condition_call(pipe: Any) -> Arguments:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    # The second image comes as a frame of tokens of its own, before the clip.
    images = {0: _picture(4 * 32, 6 * 32), 20: _picture(4 * 32, 6 * 32, turned=True)}
    conditions = [LTXVideoCondition(image=image, frame_index=frame) for frame, image in images.items()]
    return _ltx_call(pipe) | {"conditions": conditions}


def _ltx_i2v_call(pipe: Any) -> Arguments:
    return _ltx_call(pipe) | {"image": _picture(4 * 32, 6 * 32)}


def _ltx_call(pipe: Any) -> Arguments:
    return _arguments(height=4 * 32, width=6 * 32, num_frames=4 * 8 + 1)


def _gemma() -> Any:
    text = _language_model("Gemma3TextConfig", head_dim=16)
    config = transformers.Gemma3Config(
        text_config=text, vision_config=_SMALL_VISION, mm_tokens_per_image=4, image_token_index=VOCABULARY - 1
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _ltx2_connectors(layers: int) -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    each = {"num_attention_heads": 4, "attention_head_dim": TEXT_WIDTH // 4, "num_layers": 1}
    each["num_learnable_registers"] = None
    both = {f"{name}_connector_{key}": value for name in ("video", "audio") for key, value in each.items()}
    return LTX2TextConnectors(
        caption_channels=TEXT_WIDTH, text_proj_in_factor=layers + 1, connector_rope_base_seq_len=WORDS,
        rope_double_precision=False, rope_type="split", **both,
    )  # fmt: skip


def _ltx2_audio() -> Arguments:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[40, 24], upsample_factors=[20, 12],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], output_sampling_rate=24000,
    )  # fmt: skip
    return {"audio_vae": audio_vae, "vocoder": vocoder}


def _ltx2(kind: str = "LTX2Pipeline") -> Any:
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=2, caption_channels=TEXT_WIDTH, rope_double_precision=False,
        rope_type="split", perturbed_attn=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32, temporal_compression_ratio=8,
    )  # fmt: skip
    text_encoder = _gemma()
    return getattr(diffusers, kind)(
        tokenizer=_tokenizer(),
        text_encoder=text_encoder,
        connectors=_ltx2_connectors(text_encoder.config.text_config.num_hidden_layers),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
        **_ltx2_audio(),
    )


def _ltx2_call(pipe: Any) -> Arguments:
    # Guidance by a call with a perturbed layer and by one without sound, as is the default.
    return _ltx_call(pipe) | {"spatio_temporal_guidance_blocks": [1]}


def _ltx2_condition() -> Any:
    return _ltx2("LTX2ConditionPipeline")


def _ltx2_condition_call(pipe: Any) -> Arguments:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    # The second image comes as a frame of tokens of its own, after the clip.
    images = {0: _picture(4 * 32, 6 * 32), 3: _picture(4 * 32, 6 * 32, turned=True)}
    conditions = [LTX2VideoCondition(frames=image, index=index) for index, image in images.items()]
    return _ltx2_call(pipe) | {"conditions": conditions}


def _cogvideox_parts() -> Arguments:
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )
    return _t5_parts() | {"vae": vae, "scheduler": diffusers.CogVideoXDDIMScheduler()}


_COGVIDEOX = {
    "num_attention_heads": 2, "attention_head_dim": 16, "out_channels": 4, "time_embed_dim": 8, "num_layers": 2,
    "text_embed_dim": TEXT_WIDTH, "max_text_seq_length": WORDS, "sample_width": WIDTH // 8,
    "sample_height": HEIGHT // 8, "sample_frames": FRAMES, "use_rotary_positional_embeddings": True,
}  # fmt: skip


def _cogvideox_transformer(**changes: Any) -> Any:
    return diffusers.CogVideoXTransformer3DModel(**_COGVIDEOX, **changes)


def _cogvideox() -> Any:
    return diffusers.CogVideoXPipeline(**_cogvideox_parts(), transformer=_cogvideox_transformer(in_channels=4))


def _cogvideox_i2v() -> Any:
    transformer = _cogvideox_transformer(in_channels=8, use_learned_positional_embeddings=True)
    return diffusers.CogVideoXImageToVideoPipeline(**_cogvideox_parts(), transformer=transformer)


def _cogvideox_v2v() -> Any:
    return diffusers.CogVideoXVideoToVideoPipeline(
        **_cogvideox_parts(), transformer=_cogvideox_transformer(in_channels=4)
    )


def _cogvideox_fun() -> Any:
    parts = _cogvideox_parts() | {"scheduler": diffusers.DDIMScheduler()}
    return diffusers.CogVideoXFunControlPipeline(**parts, transformer=_cogvideox_transformer(in_channels=8))


def _cogvideox_fun_call(pipe: Any) -> Arguments:
    return _arguments(num_frames=None, control_video=[_picture()] * FRAMES)


def _cogvideox15() -> Any:
    transformer = _cogvideox_transformer(in_channels=4, patch_size_t=2, patch_bias=False)
    return diffusers.CogVideoXPipeline(**_cogvideox_parts(), transformer=transformer)


def _consisid() -> Any:
    # The width of a face's tokens (LFE_output_dim) has to be two thirds of the transformer's.
    transformer = diffusers.ConsisIDTransformer3DModel(
        **_COGVIDEOX, in_channels=8, use_learned_positional_embeddings=True, is_train_face=True, cross_attn_interval=1,
        cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=8, LFE_vit_dim=8, LFE_depth=5, LFE_dim_head=8,
        LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=2, LFE_output_dim=21, LFE_ff_mult=1, LFE_num_scale=5,
    )  # fmt: skip
    return diffusers.ConsisIDPipeline(**_cogvideox_parts(), transformer=transformer)


def _consisid_call(pipe: Any) -> Arguments:
    noise = torch.Generator().manual_seed(2)
    face = [torch.randn(1, 3, 8, generator=noise) for _ in range(5)]
    return _arguments(image=_picture(), id_vit_hidden=face, id_cond=torch.randn(1, 8, generator=noise))


def _allegro() -> Any:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, num_layers=2, cross_attention_dim=48,
        sample_width=WIDTH // 8, sample_height=HEIGHT // 8, sample_frames=5, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2)
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    return diffusers.AllegroPipeline(**_t5_parts(), vae=vae, scheduler=scheduler, transformer=transformer)


def _allegro_call(pipe: Any) -> Arguments:
    return _arguments(num_frames=5 * 4, clean_caption=False)


def _easyanimate() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    text_config = _language_model("Qwen2VLTextConfig", rope_parameters=rope)
    vision_config = {"depth": 1, "embed_dim": 16, "hidden_size": TEXT_WIDTH, "num_heads": 2}
    text_encoder = transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text_config.to_dict(), vision_config=vision_config)
    )
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2,
        sample_width=WIDTH // 8, sample_height=HEIGHT // 8, time_embed_dim=8, text_embed_dim=TEXT_WIDTH,
        num_layers=3, mmdit_layers=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2,
        spatial_group_norm=False,
    )  # fmt: skip
    return diffusers.EasyAnimatePipeline(
        tokenizer=_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
    )


class _NoGuardrail:
    """In place of Cosmos' guardrail, which is a package of its own with models of its own."""

    def to(self, device: Any) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True


def _cosmos() -> Any:
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
        text_embed_dim=TEXT_WIDTH, adaln_lora_dim=4, max_size=(8, 32, 32),
        concat_padding_mask=False,  # needs torchvision
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1, temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", final_sigmas_type="sigma_min"
    )
    return diffusers.CosmosTextToWorldPipeline(
        **_t5_parts(), vae=vae, scheduler=scheduler, transformer=transformer, safety_checker=_NoGuardrail()
    )


def _kandinsky5(kind: str = "Kandinsky5T2VPipeline", **changes: Any) -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=TEXT_WIDTH, in_text_dim2=8, time_dim=32, out_visual_dim=4, model_dim=48,
        ff_dim=64, num_text_blocks=1, num_visual_blocks=2, axes_dims=(8, 8, 8), **changes,
    )  # fmt: skip
    # No text encoders: Qwen's processor for text, images and videos cannot be made without its files.
    return getattr(diffusers, kind)(
        tokenizer=None,
        text_encoder=None,
        tokenizer_2=None,
        text_encoder_2=None,
        vae=_hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=transformer,
    )


def _kandinsky5_i2v() -> Any:
    return _kandinsky5("Kandinsky5I2VPipeline", visual_cond=True)


def _kandinsky5_i2v_call(pipe: Any) -> Arguments:
    return _kandinsky5_call(pipe) | {"image": _picture()}


def _kandinsky5_call(pipe: Any) -> Arguments:
    noise = torch.Generator().manual_seed(2)
    embeddings: Arguments = {}
    for prefix, words in (("", 9), ("negative_", 4)):
        embeddings[f"{prefix}prompt_embeds_qwen"] = torch.randn(1, words, TEXT_WIDTH, generator=noise)
        embeddings[f"{prefix}prompt_embeds_clip"] = torch.randn(1, 8, generator=noise)
        embeddings[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, words], dtype=torch.int32)
    return _arguments(prompt=None, negative_prompt=None, **embeddings)


def _case(
    name: str, make: Callable[[], Any], call: Callable[[Any], Arguments] | None = None, **changes: Any
) -> TinyCase:
    """A case of that name, with a call of its own or the usual one with changes."""
    return TinyCase(name, functools.partial(_build, make), call or (lambda pipe: _arguments(**changes)))


_IMAGE_CALL = {"image": _picture(), "max_sequence_length": _WAN_IMAGE_WORDS}

CASES: dict[str, TinyCase] = {
    case.name: case
    for case in (
        _case("wan", _wan),
        _case("anyflow", _anyflow, guidance_scale=1.0),
        _case("wan-i2v", _wan_i2v, **_IMAGE_CALL),
        _case("wan-flf", _wan_flf, **_IMAGE_CALL, last_image=_picture(turned=True)),
        _case("wan22", _wan22),
        _case("wan22-ti2v", _wan22_ti2v, height=2 * HEIGHT, width=2 * WIDTH),
        _case("wan-vace", _wan_vace, _wan_vace_call),
        _case("wan-v2v", _wan_v2v, _v2v_call),
        _case("wan-animate", _wan_animate, _wan_animate_call),
        _case("chronoedit", _chronoedit, **_IMAGE_CALL, enable_temporal_reasoning=True, num_temporal_reasoning_steps=2),
        _case("skyreels-v2", _skyreels_v2),
        _case("skyreels-v2-i2v", _skyreels_v2_i2v, **_IMAGE_CALL),
        _case("skyreels-v2-df", _skyreels_v2_df),
        _case("hunyuan-video", _hunyuan_video, _hunyuan_video_call),
        _case("hunyuan-video-i2v", _hunyuan_video_i2v, _hunyuan_video_i2v_call),
        _case("hunyuan-video15", _hunyuan_video15, _hunyuan_video15_call),
        _case("hunyuan-video15-i2v", _hunyuan_video15_i2v, _hunyuan_video15_i2v_call),
        _case("framepack", _framepack, _framepack_call),
        _case("mochi", _mochi, num_frames=4 * 6 + 1),
        _case("ltx", _ltx, _ltx_call),
        _case("ltx-i2v", _ltx_i2v, _ltx_i2v_call),
        _case("ltx-condition", _ltx_condition, _ltx_condition_call),
        _case("ltx2", _ltx2, _ltx2_call),
        _case("ltx2-condition", _ltx2_condition, _ltx2_condition_call),
        _case("cogvideox", _cogvideox),
        _case("cogvideox-i2v", _cogvideox_i2v, image=_picture()),
        _case("cogvideox-v2v", _cogvideox_v2v, _v2v_call),
        _case("cogvideox-fun", _cogvideox_fun, _cogvideox_fun_call),
        _case("cogvideox15", _cogvideox15, num_frames=8 * 4 + 1),  # two latent frames to a token; 9 are padded to 10
        _case("consisid", _consisid, _consisid_call),
        _case("allegro", _allegro, _allegro_call),
        _case("easyanimate", _easyanimate, max_sequence_length=None),
        _case("cosmos", _cosmos),
        _case("kandinsky5", _kandinsky5, _kandinsky5_call),
        _case("kandinsky5-i2v", _kandinsky5_i2v, _kandinsky5_i2v_call),
    )
}
