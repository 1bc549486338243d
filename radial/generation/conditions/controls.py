"""What steers a clip beside its words, as each pipeline takes it.

Shapes: B batch, C channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from radial.errors import RequestError
from radial.generation.conditions.images import at_frames
from radial.request import GenerationRequest
from radial.video.control import read_control, read_mask
from radial.video.encoding import Frames
from radial.video.images import Fit, read_image
from radial.video.masks.kept import Kept

if TYPE_CHECKING:
    from PIL.Image import Image

_GREY = 128  # what pipelines of VACE are shown where a clip is to be made anew


def controls_for(
    pipe: Any, request: GenerationRequest, images: dict[str, Any], generator: torch.Generator
) -> tuple[dict[str, Any], tuple[str, ...], Kept | None]:
    """The arguments of a pipeline's call that hold what steers a request's clip, in place of its start and end
    ``images`` where that pipeline takes these in another way; what the user should hear of them; and what of the clip
    a mask leaves as it is, whether or not the request wants that back.

    Raises:
        RequestError: a file cannot be read, or a mask is black all over.
    """
    kind = type(pipe).__name__
    size = (request.clip_height, request.clip_width, request.clip_frames)
    how = (float(request.fps or 1), request.image_fit, request.image_ground)
    control: Frames | None = None
    notes: tuple[str, ...] = ()
    if request.control_video is not None:
        control, notes = read_control(Path(request.control_video), *size, *how)
    if kind == "WanVACEPipeline":
        mask = None if request.mask is None else read_mask(Path(request.mask), *size, *how)
        keyed, told = at_frames(request, images)
        references, seen = _references(request)
        arguments = vace_arguments(size, control, mask and mask[0], keyed) | references
        kept = None if mask is None or control is None else Kept(_with_images(control, keyed), mask[0])
        return arguments, (*notes, *(() if mask is None else mask[1]), *told, *seen), kept
    if kind == "WanAnimatePipeline" and control is not None:
        arguments, told, kept = _animate(pipe, request, control, *how)
        return arguments, (*notes, *told), kept
    if kind == "LTXConditionPipeline":
        keyed, told = at_frames(request, images)
        arguments = _ltx(keyed)
        if request.strength is not None and control is not None:
            arguments |= {"denoise_strength": request.strength, "latents": _encoded(pipe, control, generator)}
        return arguments, (*notes, *told), None
    if kind == "LTX2ConditionPipeline":
        keyed, told = at_frames(request, images)
        conditions, moved = _ltx2(keyed, pipe.vae_temporal_compression_ratio, request.clip_frames - 1)
        return {"conditions": conditions}, (*told, *moved), None
    if control is not None and kind == "CogVideoXFunControlPipeline":
        return {"control_video": _pictures(control)}, notes, None
    if control is not None:
        return {"video": _pictures(control), "strength": request.strength}, notes, None
    return images, notes, None


def _references(request: GenerationRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
    read = [read_image(Path(path), request.image_ground) for path in request.references]
    notes = tuple(note for _, told in read for note in told)
    return ({"reference_images": [image for image, _ in read]} if read else {}), notes


def vace_arguments(
    size: tuple[int, int, int], control: Frames | None, mask_THW: np.ndarray[Any, Any] | None, keyed: dict[int, Image]
) -> dict[str, Any]:  # fmt: skip
    """Frames and masks of VACE: grey and white where the clip is made anew, as its authors have it; the signal of a
    control is shown, and made anew all the same.

    Args:
        size: height, width and frames of the clip.
        control: uint8 ``[T, H, W, 3]``.
        mask_THW: where the control is to be made anew.
        keyed: images of the clip's size, by the frames that they are.
    """
    if control is None and not keyed:
        return {}
    height, width, count = size
    frames = np.full((count, height, width, 3), _GREY, np.uint8) if control is None else control.copy()
    anew_THW = np.ones((count, height, width), bool) if mask_THW is None else mask_THW.copy()
    if mask_THW is not None:
        frames[mask_THW] = _GREY
    anew_THW[list(keyed)] = False
    frames = _with_images(frames, keyed)
    return {"video": _pictures(frames), "mask": _white(anew_THW)}


def _with_images(frames: Frames, keyed: dict[int, Image]) -> Frames:
    """Frames with images in the places of some."""
    shown = frames.copy()
    for frame, image in keyed.items():
        shown[frame] = np.asarray(image)
    return shown


def _animate(
    pipe: Any, request: GenerationRequest, poses: Frames, fps: float, fit: Fit, ground: str
) -> tuple[dict[str, Any], tuple[str, ...], Kept | None]:
    """A picture of who is animated, poses and faces, at the sizes that Wan Animate reads them in; and, in whose place
    they are to come, the clip without what its mask shows, as its authors prepare it, and what of it stays."""
    assert request.face_video is not None
    count, side = request.clip_frames, pipe.transformer.config.motion_encoder_size
    face, notes = read_control(Path(request.face_video), side, side, count, fps, fit, ground)
    image, seen = read_image(Path(request.references[0]), ground)
    arguments = {"image": image, "pose_video": _pictures(poses), "face_video": _pictures(face), "mode": "animate"}
    if request.background_video is None or request.mask is None:
        return arguments, (*notes, *seen), None
    size = (request.clip_height, request.clip_width, count)
    behind, told = read_control(Path(request.background_video), *size, fps, fit, ground)
    mask_THW, of_mask = read_mask(Path(request.mask), *size, fps, fit, ground)
    kept = Kept(behind.copy(), mask_THW)
    behind[mask_THW] = 0
    arguments |= {"mode": "replace", "background_video": _pictures(behind), "mask_video": _white(mask_THW)}
    return arguments, (*notes, *seen, *told, *of_mask), kept


def _ltx(keyed: dict[int, Image]) -> dict[str, Any]:
    """Conditions of LTX-Video, each at its frame."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    conditions = [LTXVideoCondition(image=image, frame_index=frame) for frame, image in sorted(keyed.items())]
    return {"conditions": conditions} if conditions else {}


def _ltx2(keyed: dict[int, Image], stride: int, last: int) -> tuple[list[Any], tuple[str, ...]]:
    """Conditions of LTX-2, each at the latent frame that holds its frame, and which of them stand elsewhere.

    Raises:
        RequestError: two lie in one latent frame.
    """
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    places: dict[int, int] = {}
    notes = []
    for frame in sorted(keyed):
        index = -(-frame // stride)
        if index in places:
            raise RequestError(f"images at frames {places[index]} and {frame} are too near: give {stride} between them")
        places[index] = frame
        stands = max(0, (index - 1) * stride + 1)
        if frame not in (stands, last):
            notes.append(f"images stand at every {stride}th frame: that of frame {frame} at {stands}")
    return [LTX2VideoCondition(frames=keyed[frame], index=index) for index, frame in places.items()], tuple(notes)


def _encoded(pipe: Any, control: Frames, generator: torch.Generator) -> torch.Tensor:
    """The latents ``[B, C, T, H, W]`` of a clip for LTX-Video, whose pipeline takes them encoded and scaled."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import retrieve_latents

    height, width = control.shape[1:3]
    with torch.inference_mode():
        pixels = pipe.video_processor.preprocess_video(_pictures(control), height, width)
        pixels_BCTHW = pixels.to(pipe._execution_device, pipe.vae.dtype)
        latents_BCTHW = retrieve_latents(pipe.vae.encode(pixels_BCTHW), generator=generator, sample_mode="argmax")
        scaled: torch.Tensor = pipe._normalize_latents(
            latents_BCTHW, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor
        )
    return scaled


def _pictures(frames: np.ndarray[Any, Any]) -> list[Image]:
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


def _white(mask_THW: np.ndarray[Any, Any]) -> list[Image]:
    return _pictures(mask_THW.astype(np.uint8) * 255)
