"""Colours of video files: frames in RGB to what a stream holds, tagged, and what streams hold to RGB by their tags.

RGB here is sRGB's: the primaries of BT.709, as screens show it. Numbers are those of ITU-T H.273.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # [H, W, 3], RGB

_BT709, _UNKNOWN, _BT470BG, _SMPTE170M, _SMPTE240M, _BT2020, _P3 = 1, 2, 5, 6, 7, 9, 12
_PQ, _HLG = 16, 18
_NARROW, _FULL = 1, 2  # ranges
_PEAK, _WHITE = 1000.0, 203.0  # nits: of HDR as it is mastered, and of white on paper in it (BT.2408)
_TO_BT709 = {
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _P3: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}


class Tags(NamedTuple):
    """What a stream says of its colours."""

    matrix: int
    primaries: int
    transfer: int
    range: int


def tags_for(height: int, width: int) -> Tags:
    """Of a stream of a size: BT.709 for HD and above, below it BT.601's matrix, as players take them without tags."""
    return Tags(_BT709 if _is_hd(height, width) else _SMPTE170M, _BT709, _BT709, _NARROW)


def _is_hd(height: int, width: int) -> bool:
    return width >= 1280 or height > 576


def set_tags(codec_context: Any, tags: Tags) -> None:
    """Have an encoder write tags."""
    codec_context.colorspace, codec_context.color_primaries = tags.matrix, tags.primaries
    codec_context.color_trc, codec_context.color_range = tags.transfer, tags.range


def from_rgb(frame: Frame, pix_fmt: str, tags: Tags) -> Any:
    """A frame as an encoder takes it."""
    import av

    return av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
        format=pix_fmt, dst_colorspace=_matrix(tags.matrix), dst_color_range=tags.range, interpolation=_exactly()
    )


def tags_of(frame: Any, *, old: bool = False) -> Tags:
    """Of a decoded frame; what it does not say is as players take it, or as files of ours had it before they said."""
    full = frame.color_range == _FULL or frame.format.name.startswith("yuvj")
    matrix = int(frame.colorspace)
    if matrix not in (_BT709, _BT470BG, _SMPTE170M, _SMPTE240M, 4, _BT2020, 10):
        matrix = _BT709 if _is_hd(frame.height, frame.width) and not old else _SMPTE170M
    matrix = _BT2020 if matrix == 10 else matrix
    return Tags(matrix, int(frame.color_primaries), int(frame.color_trc), _FULL if full else _NARROW)


def is_hdr(tags: Tags) -> bool:
    """Whether it holds more light than a plain screen shows."""
    return tags.transfer in (_PQ, _HLG)


def to_rgb(frame: Any, tags: Tags) -> Frame:
    """A decoded frame in RGB; HDR is brought to the range of plain screens (BT.2390)."""
    wide = tags.primaries if tags.primaries in _TO_BT709 else _BT2020 if is_hdr(tags) else None
    kind = "rgb24" if wide is None else "rgb48le"
    if frame.format.is_rgb:
        rgb = frame.reformat(format=kind)
    else:
        rgb = frame.reformat(
            format=kind, src_colorspace=_matrix(tags.matrix), src_color_range=tags.range, dst_color_range=_FULL,
            interpolation=_exactly(),
        )  # fmt: skip
    pixels: NDArray[Any] = rgb.to_ndarray()
    return pixels if wide is None else _to_bt709((pixels >> 4).astype(np.uint16), wide, tags.transfer)


def has_alpha(frame: Any) -> bool:
    """Whether a decoded frame says how much of it is to be seen through."""
    return any(component.is_alpha for component in frame.format.components)


def on_ground(pixels: Frame, frame: Any, ground: str) -> tuple[Frame, bool]:
    """The pixels of a frame with alpha over a plain colour, and whether any of it shows."""
    from PIL import ImageColor

    alpha = frame.reformat(format="rgba").to_ndarray()[..., 3:]
    if alpha.min(initial=255) == 255:
        return pixels, False
    share = alpha.astype(np.float32) / 255
    mixed = pixels * share + np.array(ImageColor.getrgb(ground)[:3], np.float32) * (1 - share)
    return (mixed + 0.5).astype(np.uint8), True


def _matrix(number: int) -> int:
    """swscale's number of a matrix: it has one for both kinds of BT.601."""
    return _BT470BG if number == _SMPTE170M else number


@functools.cache
def _exactly() -> Any:
    from av.video.reformatter import Interpolation as I

    return I.BICUBIC | I.ACCURATE_RND | I.FULL_CHR_H_INT | I.FULL_CHR_H_INP


def _to_bt709(codes: NDArray[np.uint16], primaries: int, transfer: int) -> Frame:
    """Codes of 12 bit in other primaries, and with another transfer, in RGB."""
    light, scale, back = _tables(transfer)
    linear = light[codes]
    if transfer == _HLG:  # the look of HLG goes by a pixel's luminance
        luminance = linear @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        linear *= (np.maximum(luminance, 1e-6) ** 0.2)[..., None]
        brightest = (linear.max(axis=-1) * (len(scale) - 1)).clip(0, len(scale) - 1).astype(np.int32)
        linear *= scale[brightest][..., None]
    else:
        linear *= scale[codes.max(axis=-1)][..., None]  # by the brightest of the three, which keeps hues
    narrow = linear @ np.array(_TO_BT709[primaries], np.float32).T
    return back[(narrow.clip(0, 1) * 4095 + 0.5).astype(np.int32)]


@functools.cache
def _tables(transfer: int) -> tuple[NDArray[np.float32], NDArray[np.float32], Frame]:
    """Light of a code, 1 being what becomes white; by what it is multiplied; and what becomes of light in 12 bit.

    For HLG the multiplier goes by light and not by code.
    """
    codes = np.linspace(0, 1, 4096)
    back = np.where(codes <= 0.0031308, 12.92 * codes, 1.055 * codes ** (1 / 2.4) - 0.055)
    if transfer == _PQ:
        nits = _pq_light(codes)
        light, scale = nits / _WHITE, _tone_map(nits) / np.maximum(nits, 1e-6)
    elif transfer == _HLG:
        scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        light, nits = scene, codes * _PEAK  # light of the scene; after its luminance to the power of 0.2, of the screen
        scale = _tone_map(nits) / np.maximum(nits, 1e-6) * _PEAK / _WHITE
    else:
        light, scale = np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4), np.ones_like(codes)
    return light.astype(np.float32), scale.astype(np.float32), np.round(back * 255).astype(np.uint8)


def _pq_light(codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nits of codes from 0 to 1 (SMPTE ST 2084)."""
    power = codes ** (1 / 78.84375)
    return 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


def _pq_code(nits: NDArray[np.float64] | float) -> NDArray[np.float64]:
    power = (np.asarray(nits) / 10_000) ** 0.1593017578125
    code: NDArray[np.float64] = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return code


def _tone_map(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nits up to ``_PEAK`` as nits up to ``_WHITE``: as they are in the dark, rolled off above (BT.2390, 5.4.1)."""
    peak = _pq_code(_PEAK)
    codes, most = np.minimum(_pq_code(nits) / peak, 1), float(_pq_code(_WHITE) / peak)
    knee = 1.5 * most - 0.5
    t = np.maximum((codes - knee) / (1 - knee), 0)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return _pq_light(np.where(codes < knee, codes, bent) * peak)
