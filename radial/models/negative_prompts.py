"""What the authors of models have their clips not show, word for word."""

from __future__ import annotations

# Wan-Video/Wan2.1 wan/configs/shared_config.py, and Wan-Video/Wan2.2 the same; for images Wan 2.1 puts a word before it
# (configs/wan_i2v_14B.py: the camera shakes; for first and last images another, the shot changes). SkyReels V2's
# diffusion forcing has Wan's, too.
WAN = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)
WAN_IMAGE = f"镜头晃动，{WAN}"
WAN_FIRST_AND_LAST = f"镜头切换，{WAN_IMAGE}"
# SkyworkAI/SkyReels-V2 generate_video.py.
SKYREELS = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
# diffusers' pipeline_ltx.py, of its authors' inference.py.
LTX = "worst quality, inconsistent motion, blurry, jittery, distorted"
# diffusers: ltx2/utils.py, cosmos/pipeline_cosmos_text2world.py, pipeline_kandinsky.py.
LTX_2 = (
    "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, grainy "
    "texture, poor lighting, flickering, motion blur, distorted proportions, unnatural skin tones, deformed facial "
    "features, asymmetrical face, missing facial features, extra limbs, disfigured hands, wrong hand count, artifacts"
    " around text, inconsistent perspective, camera shake, incorrect depth of field, background too sharp, background"
    " clutter, distracting reflections, harsh shadows, inconsistent lighting direction, color banding, cartoonish "
    "rendering, 3D CGI look, unrealistic materials, uncanny valley effect, incorrect ethnicity, wrong gender, "
    "exaggerated expressions, wrong gaze direction, mismatched lip sync, silent or muted audio, distorted voice, "
    "robotic voice, echo, background noise, off-sync audio, incorrect dialogue, added dialogue, repetitive speech, "
    "jittery movement, awkward pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, "
    "flat lighting, inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)
COSMOS = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, "
    "shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed "
    "scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, "
    "color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly "
    "edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality."
)
KANDINSKY = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, deformed, walking "
    "backwards"
)
# Tencent-Hunyuan/HunyuanVideo hyvideo/constants.py; it acts where true guidance is asked for.
HUNYUAN = (
    "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, bad hands, bad teeth, bad "
    "eyes, bad limbs, distortion"
)
# rhymes-ai/Allegro single_inference.py, which puts words around the prompt, too.
ALLEGRO = (
    "\nnsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst "
    "quality, \nlow quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.\n"
)
ALLEGRO_PROMPT = (
    "\n(masterpiece), (best quality), (ultra-detailed), (unwatermarked), \n{} \nemotional, harmonious, vignette, 4k "
    "epic detailed, shot on kodak, 35mm photo, \nsharp focus, high budget, cinemascope, moody, epic, gorgeous\n"
)
# aigc-apps/EasyAnimate predict_t2v.py for version 5.1.
EASYANIMATE = "扭曲的身体，肢体残缺，文本字幕，漫画，静止，丑陋，错误，乱码。"
