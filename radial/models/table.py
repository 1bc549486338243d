"""Every model by name: the only place where a model is named."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace

from radial.errors import RequestError
from radial.files import bundled_file
from radial.models import negative_prompts as words
from radial.models import step_caches as caches
from radial.models.spec import ModelSpec, Piece
from radial.models.step_caches import PIPELINE_CACHES
from radial.plans.pattern import RadialPattern
from radial.plans.policy import Schedule

BUNDLED, BUNDLED_CONTROL = "bundled:tiny", "bundled:tiny-control"

# Settings for radial attention: Wan, Wan 2.2 and HunyuanVideo as published; Mochi's and all others' are ours, with the
# published share of dense steps.
_OURS = RadialPattern(decay=1.0)
_NO_SINK = RadialPattern(decay=0.95, sink_frames=0)

_WAN_21 = ModelSpec(
    name="", summary="", source="", riflex_period=51.0, flow_shift=5.0, negative_prompt=words.WAN,
    exact_autoencoder=True, few_step_sampler="lcm", tiny_decoder="lightx2v/Autoencoders/taew2_1.safetensors",
    authors="Wan-Video/Wan2.1: generate.py, wan/configs",
)  # fmt: skip
_WAN_21_720P = replace(_WAN_21, height=720, width=1280, layers=40)
# Starting from an image, Wan 2.1 takes 40 steps, and at 480p a shift of 3.
_WAN_21_IMAGE = replace(
    _WAN_21_720P, text_pipeline=None, image_pipeline="WanImageToVideoPipeline", num_inference_steps=40,
    small_flow_shift=3.0, negative_prompt=words.WAN_IMAGE, schedule=Schedule(dense_layers=1, dense_steps=10),
)  # fmt: skip
_WAN_22 = replace(
    _WAN_21_720P,
    num_inference_steps=40,
    few_step_sampler="euler",
    pattern=RadialPattern(decay=0.8),
    schedule=Schedule(dense_layers=1, dense_steps=11),
    authors="Wan-Video/Wan2.2: generate.py, wan/configs",
)
_SKYREELS = replace(
    _WAN_21_720P, height=544, width=960, num_frames=97, native_frames=97, fps=24, guidance_scale=6.0, flow_shift=8.0,
    num_inference_steps=30, schedule=Schedule(dense_layers=1, dense_steps=7), negative_prompt=words.SKYREELS,
    text_pipeline="SkyReelsV2Pipeline", authors="SkyworkAI/SkyReels-V2: README, generate_video.py",
)  # fmt: skip
_HUNYUAN = replace(
    _WAN_21_720P,
    tiny_decoder="", num_frames=129, native_frames=129, fps=24, guidance_scale=6.0, max_sequence_length=256, layers=60,
    text_pipeline="HunyuanVideoPipeline", pattern=_NO_SINK, schedule=Schedule(dense_steps=12),
    long_pattern=RadialPattern(decay=1.0, sink_frames=0), riflex_period=50.3, flow_shift=None,
    negative_prompt=words.HUNYUAN, exact_autoencoder=False, few_step_sampler="euler",
    guidance_is_embedded=True, authors="Tencent-Hunyuan/HunyuanVideo: README; shift 7 is in the checkpoint",
)  # fmt: skip
_HUNYUAN_15 = replace(
    _HUNYUAN, height=480, width=848, num_frames=121, native_frames=121, stride=(4, 16, 16), layers=54,
    max_sequence_length=1000, negative_prompt="",
    text_pipeline="HunyuanVideo15Pipeline", riflex_period=None, guidance_is_embedded=False,
    authors="diffusers: scripts/convert_hunyuan_video1_5_to_diffusers.py; shift 5 and guidance 6 are in the checkpoint",
)  # fmt: skip
# Nine latent frames a section; the first one brings the image, too.
_FRAMEPACK = replace(
    _HUNYUAN, text_pipeline=None, image_pipeline="HunyuanVideoFramepackPipeline", stride=(36, 16, 16), chunk_latents=9,
    first_latents=1, window_frames=37, new_frames=36, height=480, width=832, num_frames=145, native_frames=145, fps=30,
    num_inference_steps=25, guidance_scale=10.0, schedule=Schedule(dense_steps=6), max_sequence_length=512,
    negative_prompt="", riflex_period=None, base="hunyuanvideo-community/HunyuanVideo",
    authors="lllyasviel/FramePack: demo_gradio.py",
)  # fmt: skip
_LTX = replace(
    _WAN_21,
    tiny_decoder="",
    text_pipeline="LTXPipeline", image_pipeline="LTXImageToVideoPipeline", stride=(8, 32, 32), height=480,
    width=704, num_frames=121, native_frames=257, fps=25, num_inference_steps=40, guidance_scale=3.0,
    max_sequence_length=128, layers=28, pattern=_OURS, schedule=Schedule(dense_layers=1, dense_steps=10),
    riflex_period=None, flow_shift=None, negative_prompt=words.LTX, exact_autoencoder=False, few_step_sampler="euler",
    pipeline_arguments=(("decode_timestep", 0.05), ("decode_noise_scale", 0.025)),
    authors="Lightricks/LTX-Video: inference.py, without its spatiotemporal guidance, which diffusers has not; the "
    "shift goes by the clip's tokens",
)  # fmt: skip
_LTX_DOCS = "diffusers: docs of LTX-Video, pipeline_ltx_condition.py, whose noise levels go by the steps alone"
_COGVIDEOX = replace(
    _WAN_21,
    tiny_decoder="", text_pipeline="CogVideoXPipeline", height=480, width=720, num_frames=49, native_frames=49, fps=8,
    guidance_scale=6.0, max_sequence_length=226, layers=42, pattern=_OURS, riflex_period=None, flow_shift=None,
    negative_prompt="", is_flow=False, exact_autoencoder=False, scheduler="CogVideoXDPMScheduler",
    pipeline_arguments=(("use_dynamic_cfg", True),),
    authors="zai-org/CogVideo: inference/cli_demo.py",
)  # fmt: skip
_KANDINSKY = replace(
    _WAN_21,
    tiny_decoder="",
    text_pipeline="Kandinsky5T2VPipeline", height=512, width=768, num_frames=121, native_frames=121, fps=24,
    layers=32, pattern=_OURS, riflex_period=None, flow_shift=None, negative_prompt=words.KANDINSKY,
    exact_autoencoder=False, few_step_sampler="euler",
    packages=("torchvision",), authors="diffusers: pipeline_kandinsky.py, which reads 512 words and its authors 256",
)  # fmt: skip


def _framepack_pieces(transformer: str) -> tuple[Piece, ...]:
    siglip = "lllyasviel/flux_redux_bfl"
    return (
        Piece("transformer", ("diffusers", "HunyuanVideoFramepackTransformer3DModel"), transformer),
        Piece("image_encoder", ("transformers", "SiglipVisionModel"), siglip, "image_encoder"),
        Piece("feature_extractor", ("transformers", "SiglipImageProcessor"), siglip, "feature_extractor"),
    )


def _row(base: ModelSpec, name: str, summary: str, source: str, **changes: object) -> ModelSpec:
    return replace(base, name=name, summary=summary, source=source, **changes)  # type: ignore[arg-type]


_IMAGE_ONLY = {"text_pipeline": None}
_VACE = {
    "text_pipeline": "WanVACEPipeline", "image_pipeline": "WanVACEPipeline", "control_pipeline": "WanVACEPipeline",
    "takes_last_image": True, "most_references": 4,
}  # fmt: skip
_LTX_CONDITION = dict.fromkeys(
    ("text_pipeline", "image_pipeline", "control_pipeline", "video_pipeline"), "LTXConditionPipeline"
)

_TINY = ModelSpec(
    name="tiny",
    summary="bundled: moving shapes, works offline on a laptop",
    source=BUNDLED,
    authors="made here: docs/bundled-model.md",
    height=128,
    width=128,
    num_frames=33,
    num_inference_steps=20,
    guidance_scale=3.0,
    native_frames=33,
    max_sequence_length=128,
    # 64 tokens a frame: blocks of 16 and a skip rule to their measure, or nothing far would be left.
    pattern=RadialPattern(decay=1.0, skip_width=16),
    schedule=Schedule(dense_layers=1, dense_steps=2),
    long_pattern=RadialPattern(decay=1.0, skip_width=16),
    block_size=16,
    layers=12,
    riflex_period=9.0,
    long_adapter="bundled:tiny-long",
    step_caches=caches.TINY,
    video_pipeline="WanVideoToVideoPipeline",
    reads_names=False,
)
CONTROL_FILE = bundled_file(BUNDLED_CONTROL, "control", "model")
# The bundled model with blocks of VACE beside its own; among the models as soon as the package has these.
TINY_CONTROL = _row(
    _TINY, "tiny-control", "bundled: moving shapes, steered by clips, masks, images", BUNDLED_CONTROL,
    step_caches=None, video_pipeline=None, long_adapter=None, riflex_period=None, **_VACE | {"most_references": 1},
)  # fmt: skip

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _TINY,
        *([TINY_CONTROL] if CONTROL_FILE.is_file() else []),
        _row(
            _WAN_21, "wan2.1-1.3b", "Wan 2.1 text-to-video, 1.3 B, 480p", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            guidance_scale=6.0, flow_shift=8.0, authors="Wan-Video/Wan2.1: README, \"for the T2V-1.3B model\"",
            step_caches=caches.WAN_21_T2V_1_3B, video_pipeline="WanVideoToVideoPipeline",
        ),
        _row(
            _WAN_21, "anyflow-wan2.1-14b", "AnyFlow on Wan 2.1, text-to-video in few steps, 14 B, 480p",
            "nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers", text_pipeline="AnyFlowPipeline", layers=40,
            num_inference_steps=4, guidance_scale=1.0, guidance_is_within=True, is_flow=False, flow_shift=None,
            schedule=Schedule(dense_layers=1, dense_steps=1), riflex_period=None, negative_prompt="",
            authors="diffusers: pipeline_anyflow.py; its schedule is in the checkpoint",
        ),
        _row(
            _WAN_21_720P, "wan2.1-14b", "Wan 2.1 text-to-video, 14 B, 480p and 720p",
            "Wan-AI/Wan2.1-T2V-14B-Diffusers", step_caches=caches.WAN_21_T2V_14B,
            video_pipeline="WanVideoToVideoPipeline",
        ),
        _row(
            _WAN_21_IMAGE, "wan2.1-i2v-14b-480p", "Wan 2.1 image-to-video, 14 B, 480p",
            "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", height=480, width=832, step_caches=caches.WAN_21_I2V_480P,
        ),
        _row(
            _WAN_21_IMAGE, "wan2.1-i2v-14b-720p", "Wan 2.1 image-to-video, 14 B, 720p",
            "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", step_caches=caches.WAN_21_I2V_720P,
        ),
        _row(
            _WAN_21_IMAGE, "wan2.1-flf2v-14b", "Wan 2.1 from a first and a last image, 14 B, 720p",
            "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", takes_last_image=True, needs_last_image=True,
            num_inference_steps=50, flow_shift=16.0,
            schedule=Schedule(dense_layers=1, dense_steps=12), small_flow_shift=None,
            negative_prompt=words.WAN_FIRST_AND_LAST,
        ),
        _row(
            _WAN_21, "wan2.1-vace-1.3b", "Wan 2.1 VACE, 1.3 B, steered by clips, masks, images",
            "Wan-AI/Wan2.1-VACE-1.3B-diffusers", flow_shift=16.0, **_VACE,
        ),
        _row(
            _WAN_21_720P, "wan2.1-vace-14b", "Wan 2.1 VACE, 14 B, steered by clips, masks, images",
            "Wan-AI/Wan2.1-VACE-14B-diffusers", flow_shift=16.0, **_VACE,
        ),
        _row(
            _WAN_22, "wan2.2-a14b", "Wan 2.2 text-to-video, two 14 B experts, 480p and 720p",
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers", guidance_scale=4.0, guidance_scale_2=3.0, flow_shift=12.0,
            has_two_transformers=True, step_caches=caches.WAN_22_T2V_A14B,
        ),
        _row(
            _WAN_22, "wan2.2-i2v-a14b", "Wan 2.2 image-to-video, two 14 B experts, 480p and 720p",
            "Wan-AI/Wan2.2-I2V-A14B-Diffusers", guidance_scale=3.5, image_pipeline="WanImageToVideoPipeline",
            takes_last_image=True, has_two_transformers=True, step_caches=caches.WAN_22_I2V_A14B, **_IMAGE_ONLY,
        ),
        _row(
            _WAN_22, "wan2.2-ti2v-5b", "Wan 2.2 text- and image-to-video, 5 B, 720p", "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            image_pipeline="WanImageToVideoPipeline", stride=(4, 32, 32), height=704, num_frames=121,
            native_frames=121, fps=24, num_inference_steps=50, layers=30, riflex_period=None,
            step_caches=caches.WAN_22_TI2V_5B, video_pipeline="WanVideoToVideoPipeline",
            tiny_decoder="lightx2v/Autoencoders/taew2_2.safetensors",
        ),
        _row(
            _WAN_22, "wan2.2-animate-14b", "Wan 2.2 Animate, 14 B: who a picture shows, moved as another moves, 720p",
            "Wan-AI/Wan2.2-Animate-14B-Diffusers", control_pipeline="WanAnimatePipeline", most_references=1,
            first_frame=5, first_latents=2, window_frames=77, new_frames=76, num_frames=77, native_frames=77, fps=30,
            num_inference_steps=20, guidance_scale=1.0, schedule=Schedule(dense_layers=1, dense_steps=5),
            riflex_period=None, authors="Wan-Video/Wan2.2: wan/configs, wan/animate.py, which samples by DPM++",
            **_IMAGE_ONLY,
        ),
        _row(
            _SKYREELS, "skyreels-v2-14b", "SkyReels V2 text-to-video, 14 B, 540p",
            "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
        ),
        _row(
            _SKYREELS, "skyreels-v2-i2v-14b", "SkyReels V2 image-to-video, 14 B, 540p",
            "Skywork/SkyReels-V2-I2V-14B-540P-Diffusers", image_pipeline="SkyReelsV2ImageToVideoPipeline",
            guidance_scale=5.0, flow_shift=5.0, **_IMAGE_ONLY,
        ),
        _row(
            _SKYREELS, "skyreels-v2-df-1.3b", "SkyReels V2 diffusion forcing, 1.3 B, 540p",
            "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers", text_pipeline="SkyReelsV2DiffusionForcingPipeline",
            image_pipeline="SkyReelsV2DiffusionForcingImageToVideoPipeline", layers=30,
            window_frames=97, new_frames=80, few_step_sampler="euler", negative_prompt=words.WAN, image_flow_shift=5.0,
            image_guidance_scale=5.0,
            authors="SkyworkAI/SkyReels-V2: README, generate_video_df.py",
        ),
        _row(
            _HUNYUAN, "hunyuan-video", "HunyuanVideo text-to-video, 13 B, 720p",
            "hunyuanvideo-community/HunyuanVideo", step_caches=caches.HUNYUAN_VIDEO,
        ),
        _row(
            _HUNYUAN, "hunyuan-video-i2v", "HunyuanVideo image-to-video, 13 B, 720p",
            "hunyuanvideo-community/HunyuanVideo-I2V", image_pipeline="HunyuanVideoImageToVideoPipeline",
            authors="Tencent-Hunyuan/HunyuanVideo-I2V, diffusers: pipeline_hunyuan_video_image2video.py", **_IMAGE_ONLY,
        ),
        _row(
            _HUNYUAN_15, "hunyuan-video-1.5", "HunyuanVideo 1.5 text-to-video, 8 B, 480p",
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        ),
        _row(
            _HUNYUAN_15, "hunyuan-video-1.5-i2v", "HunyuanVideo 1.5 image-to-video, 8 B, 480p",
            "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_i2v",
            image_pipeline="HunyuanVideo15ImageToVideoPipeline", bucket_side=640, **_IMAGE_ONLY,
        ),
        _row(
            _FRAMEPACK, "framepack", "FramePack on HunyuanVideo, 13 B: of any length, back from its end, from an image",
            "lllyasviel/FramePackI2V_HY", takes_last_image=True, pieces=_framepack_pieces("lllyasviel/FramePackI2V_HY"),
        ),
        _row(
            _FRAMEPACK, "framepack-f1", "FramePack F1 on HunyuanVideo, 13 B: of any length, onwards from an image",
            "lllyasviel/FramePack_F1_I2V_HY_20250503", pipeline_arguments=(("sampling_type", "vanilla"),),
            pieces=_framepack_pieces("lllyasviel/FramePack_F1_I2V_HY_20250503"),
            authors="lllyasviel/FramePack: demo_gradio_f1.py",
        ),
        _row(
            _WAN_21, "mochi", "Mochi 1 preview, 10 B, 480p", "genmo/mochi-1-preview", text_pipeline="MochiPipeline",
            tiny_decoder="",
            stride=(6, 16, 16), width=848, num_frames=163, native_frames=163, fps=30, num_inference_steps=64,
            guidance_scale=4.5, max_sequence_length=256, layers=48, pattern=_OURS,
            schedule=Schedule(dense_layers=1, dense_steps=15), riflex_period=None, flow_shift=None, negative_prompt="",
            exact_autoencoder=False, few_step_sampler="euler",
            authors="genmoai/mochi: README, demos/cli.py; its schedule is in the checkpoint",
        ),
        _row(_LTX, "ltx-video", "LTX-Video text- and image-to-video, 2 B", "Lightricks/LTX-Video"),
        _row(
            _LTX, "ltx-video-0.9.5", "LTX-Video 0.9.5, 2 B, images at any frame", "Lightricks/LTX-Video-0.9.5",
            takes_last_image=True, authors=_LTX_DOCS, **_LTX_CONDITION,
        ),
        _row(
            _LTX, "ltx-video-0.9.7-13b", "LTX-Video 0.9.7, 13 B, images at any frame", "Lightricks/LTX-Video-0.9.7-dev",
            takes_last_image=True, layers=48, num_inference_steps=30, guidance_scale=5.0, height=512, width=768,
            schedule=Schedule(dense_layers=1, dense_steps=8), authors=_LTX_DOCS, **_LTX_CONDITION,
            pipeline_arguments=(*_LTX.pipeline_arguments, ("guidance_rescale", 0.7), ("image_cond_noise_scale", 0.0)),
        ),
        _row(
            _LTX, "ltx-2", "LTX-2 text- and image-to-video with sound, 19 B", "Lightricks/LTX-2",
            text_pipeline="LTX2Pipeline", image_pipeline="LTX2ImageToVideoPipeline",
            control_pipeline="LTX2ConditionPipeline", width=768, num_frames=121, fps=24,
            height=512, max_sequence_length=1024, layers=48, negative_prompt=words.LTX_2,
            pipeline_arguments=(("use_cross_timestep", False), ("spatio_temporal_guidance_blocks", (29,))),
            authors="Lightricks/LTX-2: ltx-pipelines, constants; one stage; the shift goes by the clip's tokens as in "
            "diffusers, in most of the authors' own pipelines by 4096",
        ),
        _row(
            _COGVIDEOX, "cogvideox-2b", "CogVideoX text-to-video, 2 B, 480p", "zai-org/CogVideoX-2b", layers=30,
            scheduler="CogVideoXDDIMScheduler", pipeline_arguments=(), half_dtype="float16",
            video_pipeline="CogVideoXVideoToVideoPipeline",
        ),
        _row(
            _COGVIDEOX, "cogvideox-5b", "CogVideoX text-to-video, 5 B, 480p", "zai-org/CogVideoX-5b",
            riflex_period=19.9, video_pipeline="CogVideoXVideoToVideoPipeline",
        ),
        _row(
            _COGVIDEOX, "cogvideox-5b-i2v", "CogVideoX image-to-video, 5 B, 480p", "zai-org/CogVideoX-5b-I2V",
            image_pipeline="CogVideoXImageToVideoPipeline", **_IMAGE_ONLY,
        ),
        _row(
            _COGVIDEOX, "cogvideox-fun-5b-pose", "CogVideoX-Fun, 5 B, 480p, follows a clip of poses",
            "alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose", control_pipeline="CogVideoXFunControlPipeline",
            scheduler="DDIMScheduler", pipeline_arguments=(), authors="diffusers: pipeline_cogvideox_fun_control.py",
            **_IMAGE_ONLY,
        ),
        _row(
            _WAN_21_720P, "allegro", "Allegro text-to-video, 3 B, 720p", "rhymes-ai/Allegro",
            text_pipeline="AllegroPipeline",
            tiny_decoder="", first_frame=0, num_frames=88, native_frames=88, fps=15,
            num_inference_steps=100, guidance_scale=7.5, layers=32, pattern=_OURS,
            schedule=Schedule(dense_layers=1, dense_steps=24), riflex_period=None, flow_shift=None,
            negative_prompt=words.ALLEGRO, prompt_template=words.ALLEGRO_PROMPT, is_flow=False, exact_autoencoder=True,
            decodes_in_tiles=True, authors="rhymes-ai/Allegro: README, single_inference.py",
        ),
        _row(
            _WAN_21, "easyanimate-v5.1-12b", "EasyAnimate 5.1 text-to-video, 12 B",
            "alibaba-pai/EasyAnimateV5.1-12b-zh-diffusers", text_pipeline="EasyAnimatePipeline",
            tiny_decoder="", height=384, width=672,
            num_frames=49, native_frames=49, fps=8, guidance_scale=6.0, max_sequence_length=256, layers=48,
            pattern=_OURS, riflex_period=None, flow_shift=None, negative_prompt=words.EASYANIMATE,
            exact_autoencoder=False, few_step_sampler="euler", authors="aigc-apps/EasyAnimate: predict_t2v.py",
        ),
        _row(
            _WAN_21_720P, "cosmos-1.0-7b", "Cosmos 1.0 text-to-world, 7 B, 720p",
            "nvidia/Cosmos-1.0-Diffusion-7B-Text2World", text_pipeline="CosmosTextToWorldPipeline",
            tiny_decoder="", stride=(8, 16, 16),
            height=704, num_frames=121, native_frames=121, fps=24, num_inference_steps=35, guidance_scale=7.0,
            layers=28, pattern=_OURS, schedule=Schedule(dense_layers=1, dense_steps=8), riflex_period=None,
            flow_shift=None, negative_prompt=words.COSMOS, is_flow=False, exact_autoencoder=False,
            packages=("torchvision", "cosmos_guardrail"), gated=True,
            authors="nvidia-cosmos/cosmos-predict1: inference_utils.py; diffusers: pipeline_cosmos_text2world.py",
        ),
        _row(
            _WAN_21, "minimax-h3", "MiniMax-H3 text- and image-to-video with sound, 33 B, 5 to 15 s",
            "MiniMaxAI/MiniMax-H3", text_pipeline="MiniMaxH3ModularPipeline",
            tiny_decoder="", image_pipeline="MiniMaxH3ModularPipeline",
            takes_last_image=True, stride=(17, 32, 32), first_frame=5, chunk_latents=5, first_latents=2, height=768,
            width=1344, num_frames=124, native_frames=345, shortest_frames=124, fps=24, exact_fps=True,
            num_inference_steps=49, guidance_scale=1.0, guidance_is_within=True, layers=50, pattern=_OURS,
            schedule=Schedule(dense_layers=1, dense_steps=12), riflex_period=None, flow_shift=None, negative_prompt="",
            is_flow=False, exact_autoencoder=False, decodes_in_tiles=True, few_step_sampler="euler",
            authors="diffusers: modular_pipelines/minimax_h3; its 50 points of the schedule are 49 steps, and the "
            "shifts of picture and sound, 12 and 3, are in the checkpoint",
        ),
        _row(
            _KANDINSKY, "kandinsky-5-lite", "Kandinsky 5 Lite text-to-video, 2 B",
            "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers",
        ),
    )
}  # fmt: skip


# VideoX-Fun's models on Wan, by the names of their files and folders.
_FUN_INP = re.compile(r"fun.*inp(?![a-z])", re.IGNORECASE)
_FUN_HUB = re.compile(r"alibaba-pai/Wan2\.\d-(?:VACE-)?Fun(?!.*diffusers).*", re.IGNORECASE)


def as_fun(spec: ModelSpec, name: str) -> ModelSpec:
    """A spec of Wan that starts from an image, as VideoX-Fun's InP models are run where a file's or folder's name
    speaks of them: they have the tensors of Wan's, and were tuned to end on an image, too."""
    if spec.image_pipeline != "WanImageToVideoPipeline" or not _FUN_INP.search(name):
        return spec
    return replace(
        spec, takes_last_image=True, num_inference_steps=50, guidance_scale=6.0, flow_shift=5.0, small_flow_shift=None,
        schedule=Schedule(dense_layers=1, dense_steps=12), negative_prompt=words.WAN, step_caches=None,
        authors="aigc-apps/VideoX-Fun: predict_i2v.py",
    )  # fmt: skip


def refuse_fun(name: str) -> str:
    """Why a hub id of VideoX-Fun's is not loaded from there; nothing for others."""
    if not _FUN_HUB.fullmatch(name):
        return ""
    if _FUN_INP.search(name):
        return (
            f"{name} is laid out as its authors' program wants it: give the file of its transformer, whose name is to "
            "say Fun and InP, as the model"
        )
    able = ", ".join(one.name for one in MODELS.values() if "control_video" in one.steered_by)
    return (
        f"{name} takes the latents of its control beside the clip's, which no pipeline of diffusers gives it; models "
        f"that follow a clip: {able}"
    )


# Settings that go together. Adapters distilled to few steps are trained without guidance, on a shifted schedule; by
# distribution matching, as for Wan 2.1, on steps that lead to a clean clip and add noise anew (``lcm``).
PRESETS: dict[str, dict[str, object]] = {
    "4-step": {"num_inference_steps": 4, "guidance_scale": 1.0, "flow_shift": 5.0},
    "8-step": {"num_inference_steps": 8, "guidance_scale": 1.0, "flow_shift": 5.0},
}


def find_preset(name: str, spec: ModelSpec) -> dict[str, object]:
    """The request fields of a preset for a model.

    Raises:
        RequestError: there is no such preset.
    """
    if name not in PRESETS:
        raise RequestError(f"unknown preset {name!r}; there is {', '.join(PRESETS)}")
    return PRESETS[name] | {"sampler": spec.few_step_sampler}


def nearest(name: str) -> str:
    """The names of models that one may have meant, in words; nothing where none is near."""
    if name == "tiny-control":
        return f"; there is no {CONTROL_FILE}, which python -m radial_finetune.pretrain.control makes"
    known = {key.lower(): spec.name for spec in MODELS.values() for key in (spec.name, spec.source)}
    found = list(dict.fromkeys(known[key] for key in difflib.get_close_matches(name.lower(), known, 6, 0.6)))[:3]
    return f"; do you mean {' or '.join(found)}?" if found else ""


def _from_image(value: float | None) -> str:
    return "" if value is None else f", {value:g} from an image"


def models_page() -> str:
    """The models as a Markdown page, docs/models.md: ``python -m radial.models.table > docs/models.md``."""

    def settings(pattern: RadialPattern, schedule: Schedule) -> str:
        sink = "first frame" if pattern.sink_frames else "no sink"
        return f"{pattern.decay:g}, {sink}, {schedule.dense_layers} / {schedule.dense_steps}"

    lines = [
        "# Models",
        "",
        "Written by `python -m radial.models.table`. Sizes, steps and guidance are defaults; *native* is the longest",
        "clip that a model was trained on. Radial settings are decay, sink, dense layers / dense steps, up to the",
        "native length and beyond it: as published for Wan's and HunyuanVideo's text-to-video, ours for the rest.",
        "",
        "| name | what | starts from | size | frames (native) | fps | steps | guidance | radial | beyond | source |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for spec in MODELS.values():
        starts = [*spec.starts_from, *(["last image"] if spec.takes_last_image else [])]
        starts = [word for word in starts if word != "control"] + [name.replace("_", " ") for name in spec.steered_by]
        second = "" if spec.guidance_scale_2 is None else f", {spec.guidance_scale_2:g}"
        cells = (
            f"`{spec.name}`", spec.summary, ", ".join(starts), f"{spec.width}x{spec.height}",
            f"{spec.num_frames} ({spec.native_frames})", spec.fps, spec.num_inference_steps,
            f"{spec.guidance_scale:g}{second}{_from_image(spec.image_guidance_scale)}",
            settings(spec.pattern, spec.schedule), settings(spec.long_pattern, spec.long_schedule), f"`{spec.source}`",
        )  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    lines += [
        "",
        "## As their authors run them",
        "",
        "*Shift* is that of the noise schedule, *checkpoint* the one that the files bring; *negative* how the authors'",
        "words to avoid begin, which a clip takes unless it says others; *autoencoder* the numbers it computes in;",
        "*few steps* the sampler of `--preset 4-step` and `8-step`; *beside* what else its authors run it with.",
        "Read in their code and in conversion scripts; what the hub's own files say was not compared.",
        "",
        "| name | shift | negative | autoencoder | few steps | beside | needs | settings from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for spec in MODELS.values():
        shift = "checkpoint" if spec.flow_shift is None else f"{spec.flow_shift:g}"
        shift += "" if spec.small_flow_shift is None else f", {spec.small_flow_shift:g} at 480p"
        shift += _from_image(spec.image_flow_shift)
        told = [] if spec.scheduler is None else [spec.scheduler]
        told += [f"{name} {value}" for name, value in spec.pipeline_arguments]
        told += ["words around the prompt"] if spec.prompt_template else []
        few = spec.few_step_sampler if spec.is_flow else ""
        needs = [*spec.packages, *(["terms accepted on the hub"] if spec.gated else [])]
        row = (
            f"`{spec.name}`", shift, f"{spec.negative_prompt.strip()[:24]}..." if spec.negative_prompt else "",
            f"{'float32' if spec.exact_autoencoder else 'as asked'}{', in tiles' if spec.decodes_in_tiles else ''}",
            few, ", ".join(told), ", ".join(needs), spec.authors,
        )  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) for cell in row)} |")
    lines += [
        "",
        "## Step caches",
        "",
        "What `--cache auto` and `--cache fast` are ([what they leave out](generate.md#faster)), and where their",
        "numbers are published. Models that are not here have none.",
        "",
        "| name | auto | fast | numbers from |",
        "|---|---|---|---|",
    ]
    for spec in MODELS.values():
        pipelines = [one for one in (spec.text_pipeline, spec.image_pipeline, spec.control_pipeline) if one]
        found = spec.step_caches or next((PIPELINE_CACHES[one] for one in pipelines if one in PIPELINE_CACHES), None)
        if found is not None and pipelines:
            sources = dict.fromkeys((found.auto.source, found.fast.source))
            lines.append(f"| `{spec.name}` | {found.auto} | {found.fast} | {'; '.join(sources)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(models_page(), end="")
