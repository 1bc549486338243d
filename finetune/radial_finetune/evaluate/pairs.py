"""Clips held against others of the same size, frame by frame, and what many such pairs have in common.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radial.errors import RequestError
from radial.video.fidelity import frame_psnr, frame_ssim
from radial_finetune.evaluate.measures.flow import Flows
from radial_finetune.evaluate.measures.stream import Frame, small, working_size

# Wang et al. 2003, from the finest scale to the coarsest.
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11


@dataclass(frozen=True)
class PairMeasures:
    """One clip against another, means over frames.

    Attributes:
        psnr: in dB, at most 100.
        ssim, ms_ssim: structural similarity, at one scale and at five, or as many as the frames are large enough for;
            None below 22 pixels.
        tof: distance between the optical flows of both, in percent of the frame's shorter side a second (the tOF of
            TecoGAN, Chu et al. 2020): how much else moves, whatever it looks like.
        frames: how many were compared.
    """

    psnr: float
    ssim: float
    ms_ssim: float | None
    tof: float
    frames: int


def hold_against(frames: Iterable[Frame], others: Iterable[Frame], fps: float) -> PairMeasures:
    """Compare two clips of uint8 RGB frames, as far as both go; two frames of each are in memory.

    Raises:
        RequestError: their frames differ in size, there are fewer than two, or torchmetrics is not installed.
    """
    ms_ssim = multiscale()
    flows = Flows()
    found: list[tuple[float, float, float | None]] = []
    apart: list[float] = []
    last: tuple[Any, Any] | None = None
    for one, two in zip(frames, others, strict=False):
        if one.shape != two.shape:
            sizes = [f"{frame.shape[1]}x{frame.shape[0]}" for frame in (one, two)]
            raise RequestError(f"clips of one size can be compared, not of {sizes[0]} and {sizes[1]}")
        found.append((frame_psnr(one, two), frame_ssim(one, two), ms_ssim(one, two)))
        size = working_size(one)
        now = _grey(small(one, size)), _grey(small(two, size))
        if last is not None:
            moved = [flows.calculate(before, after) for before, after in zip(last, now, strict=True)]
            apart.append(float(np.linalg.norm(moved[0] - moved[1], axis=-1).mean()) / min(size) * fps * 100)
        last = now
    if not apart:
        raise RequestError("clips of two frames and more can be compared")
    psnr, ssim, scales = zip(*found, strict=True)
    return PairMeasures(
        float(np.mean(psnr)), float(np.mean(ssim)), None if scales[0] is None else float(np.mean(scales)),
        float(np.mean(apart)), len(found),
    )  # fmt: skip


def multiscale() -> Callable[[Frame, Frame], float | None]:
    """Multi-scale structural similarity of two frames.

    Raises:
        RequestError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
    except ImportError as error:
        raise RequestError("MS-SSIM needs torchmetrics: pip install 'radial-video[measure]'") from error
    import torch

    def similarity(one_HWC: Frame, two_HWC: Frame) -> float | None:
        side = min(one_HWC.shape[:2])
        # The coarsest frame must be as large as a window.
        scales = [count for count in range(2, 6) if side // 2 ** (count - 1) >= _WINDOW]
        if not scales:
            return None
        weights = np.array(_SCALES[: scales[-1]])
        one, two = (
            torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float() for x in (one_HWC, two_HWC)
        )
        with torch.inference_mode():
            value = multiscale_structural_similarity_index_measure(
                one, two, data_range=255.0, betas=tuple(float(x) for x in weights / weights.sum())
            )
        return float(value)

    return similarity


def differences(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, tuple[float, float, float]]:
    """How the measures of clips differ from those of the clips that they are held against: the mean over pairs and its
    95 % interval, of pairs drawn with repetition. What cannot be judged in some pair is left out of that measure."""
    from radial_finetune.evaluate.shapes import bootstrap

    found = {}
    for name in pairs[0][0]:
        values = [(one[name], two[name]) for one, two in pairs]
        apart = [a - b for a, b in values if isinstance(a, int | float) and isinstance(b, int | float)]
        if len(apart) > 1:
            found[name] = bootstrap(np.array(apart, np.float64))
    return found


def pair_up(files: Sequence[Any], against: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each file with the one that it is held against: one for all, or one for each.

    Raises:
        RequestError: there are as many as neither.
    """
    if len(against) not in (1, len(files)):
        raise RequestError(
            f"--against takes one file for all, or one for each: there are {len(files)} files, and {len(against)} to "
            "hold them against"
        )
    return list(zip(files, itertools.islice(itertools.cycle(against), len(files)), strict=True))


def _grey(image: Frame) -> Frame:
    import cv2

    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
