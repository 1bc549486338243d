"""Step caches: which of diffusers' hooks leaves out what hardly changes from one step to the next, and with which
constants. Each row names where its numbers are published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radial.errors import RequestError

CacheWord = Literal["off", "auto", "fast"]
LEAST_STEPS = 10  # of a run with a cache


@dataclass(frozen=True, kw_only=True)
class StepCache:
    """A cache and its constants.

    Attributes:
        method: ``first_block`` computes the first block, and leaves the others out where its residual is within
            ``threshold`` of the last one's; ``mag`` leaves all of them out while the error that the ``mag_ratios``
            foretell adds up to less than ``threshold``.
        max_skip_steps: MagCache's K: steps in a row that are left out at most.
        retention_ratio: share of the first steps that are computed whatever they are.
        mag_ratios: how much the residual grows from one step to the next, of passes with the prompt.
        source: where the numbers are said.
    """

    method: Literal["first_block", "mag"]
    threshold: float
    max_skip_steps: int = 0
    retention_ratio: float = 0.0
    mag_ratios: tuple[float, ...] = ()
    source: str

    @property
    def name(self) -> str:
        """As its authors call it."""
        return "MagCache" if self.method == "mag" else "First Block Cache"

    def __str__(self) -> str:
        """Its name and constants, in short."""
        told = f"{self.name} {self.threshold:g}"
        return f"{told}, at most {self.max_skip_steps} in a row" if self.method == "mag" else told


@dataclass(frozen=True)
class StepCaches:
    """What ``--cache auto`` and ``--cache fast`` mean for a model."""

    auto: StepCache
    fast: StepCache


def choose_step_cache(
    word: CacheWord, caches: StepCaches | None, pipeline: str | None, model: str, steps: int
) -> StepCache | None:
    """What a request's word means, of the model's own caches or, where it has none, its pipeline's; None for none.

    Raises:
        RequestError: the run has too few steps, or ``fast`` has no cache to mean.
    """
    if word == "off":
        return None
    if steps < LEAST_STEPS:
        raise RequestError(
            f"cache {word} is for {LEAST_STEPS} steps or more, not {steps}: where they are few each changes the clip "
            "too much to be left out; take cache off"
        )
    found = caches or PIPELINE_CACHES.get(pipeline or "")
    if found is None and word == "fast":
        raise RequestError(f"cache fast is not for {model}: {why_none(pipeline)}; take cache off")
    return None if found is None else getattr(found, word)


def why_none(pipeline: str | None) -> str:
    """Why a pipeline's models have no cache."""
    if pipeline == "WanVACEPipeline":
        return "its control is added between blocks, and would be added once more to a residual that holds it"
    if pipeline == "HunyuanVideoFramepackPipeline":
        return "what it keeps of a section would be taken for the next one's"
    if (pipeline or "").startswith("Kandinsky5"):
        return "of diffusers' caches only MagCache knows its blocks, and its numbers are not known here"
    return "no cache of diffusers knows its transformer's blocks"


def _mag(ratios: tuple[float, ...], threshold: float, most: int, retention: float, source: str) -> StepCache:
    return StepCache(
        method="mag", threshold=threshold, max_skip_steps=most, retention_ratio=retention, mag_ratios=ratios,
        source=source,
    )  # fmt: skip


def _first_block(threshold: float, source: str) -> StepCache:
    return StepCache(method="first_block", threshold=threshold, source=source)


# Of passes with the prompt, from the second step on; those without it differ by less than a hundredth after the first
# steps, which are computed always.
_WAN_21_T2V_1_3B = (
    1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535, 0.99552,
    0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927,
    0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202,
    0.97977, 0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
)  # fmt: skip
_WAN_21_T2V_14B = (
    1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468, 0.99438,
    0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313, 0.99215, 0.99218,
    0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037,
    0.97678, 0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
)  # fmt: skip
_WAN_21_I2V_480P = (
    1.0, 0.98783, 0.97559, 0.98311, 0.98202, 0.9888, 0.98762, 0.98957, 0.99052, 0.99383, 0.98857, 0.99065, 0.98845,
    0.99057, 0.98957, 0.98601, 0.98823, 0.98756, 0.98808, 0.98721, 0.98571, 0.98543, 0.98157, 0.98411, 0.97952,
    0.98149, 0.9774, 0.97825, 0.97355, 0.97085, 0.97056, 0.96588, 0.96113, 0.9567, 0.94961, 0.93973, 0.93217, 0.91878,
    0.90955, 0.92617,
)  # fmt: skip
_WAN_21_I2V_720P = (
    1.0, 0.99428, 0.98588, 0.98273, 0.99018, 0.98911, 0.98646, 0.99454, 0.9891, 0.99124, 0.99102, 0.99215, 0.99515,
    0.99576, 0.99068, 0.99097, 0.99166, 0.99041, 0.99201, 0.99101, 0.98599, 0.98845, 0.98848, 0.98862, 0.98718,
    0.98497, 0.98264, 0.98389, 0.97938, 0.97535, 0.97498, 0.973, 0.96827, 0.96261, 0.95335, 0.94649, 0.93397, 0.91636,
    0.89088, 0.8679,
)  # fmt: skip
_WAN_22_T2V_A14B = (
    1.0, 1.00124, 0.99822, 0.99696, 0.99703, 0.9966, 0.99602, 0.99578, 0.99484, 0.99633, 0.99659, 0.99534, 0.99584,
    0.99681, 0.99563, 0.9944, 0.99594, 0.99466, 0.99453, 0.99389, 0.99391, 0.99354, 0.99283, 0.99268, 0.99057,
    0.99125, 0.65523, 0.98808, 0.98765, 0.9851, 0.98311, 0.9805, 0.97776, 0.97278, 0.96731, 0.95857, 0.94385, 0.92118,
    0.88108, 0.80263,
)  # fmt: skip
_WAN_22_I2V_A14B = (
    1.0, 0.99191, 0.99356, 0.99326, 0.99251, 0.99393, 0.9943, 0.99276, 0.99389, 0.99274, 0.99316, 0.99379, 0.99268,
    0.99222, 0.99175, 0.91076, 0.98931, 0.99087, 0.98852, 0.98895, 0.98806, 0.9871, 0.98613, 0.98434, 0.983, 0.98185,
    0.98131, 0.9783, 0.97619, 0.97264, 0.97088, 0.96568, 0.96045, 0.95322, 0.94579, 0.93297, 0.91699, 0.89174, 0.8541,
    0.79823,
)  # fmt: skip
_WAN_22_TI2V_5B = (
    1.0, 0.99505, 0.99441, 0.99558, 0.99499, 0.99534, 0.99468, 0.99463, 0.9946, 0.99408, 0.9945, 0.99409, 0.99403,
    0.99382, 0.99349, 0.99377, 0.9933, 0.99303, 0.99217, 0.992, 0.99201, 0.99133, 0.99112, 0.99155, 0.98958, 0.98959,
    0.98838, 0.98826, 0.9883, 0.98711, 0.98562, 0.98511, 0.98414, 0.98284, 0.98104, 0.97981, 0.97849, 0.97557,
    0.97398, 0.97171, 0.96917, 0.96511, 0.96263, 0.95839, 0.95483, 0.94942, 0.9468, 0.94583, 0.94843, 0.96949,
)  # fmt: skip
_HUNYUAN_VIDEO = (
    1.0, 1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101, 1.00679, 1.02556,
    1.00908, 1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381, 1.01886, 1.01161, 1.02968, 1.00544,
    1.02822, 1.00689, 1.02119, 1.0105, 1.01044, 1.01572, 1.02972, 1.0094, 1.02368, 1.0226, 0.98965, 1.01588, 1.02146,
    1.0018, 1.01687, 0.99436, 1.00283, 1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943, 0.85703, 0.75456,
)  # fmt: skip

_WAN = "Zehong-Ma/MagCache: MagCache4Wan2.1"
# The ratios as deepbeepmeep/Wan2GP has them (models/wan/wan_handler.py), whose other rows are the authors' own.
_WAN_22 = "Zehong-Ma/MagCache: MagCache4Wan2.2"
_FASTER_22 = "Zehong-Ma/MagCache: the defaults of MagCache4Wan2.1's script"
_HUNYUAN = "Zehong-Ma/MagCache: MagCache4HunyuanVideo"

WAN_21_T2V_1_3B = StepCaches(
    _mag(_WAN_21_T2V_1_3B, 0.12, 2, 0.2, f"{_WAN}, E012K2R02"),
    _mag(_WAN_21_T2V_1_3B, 0.12, 4, 0.2, f"{_WAN}, E012K4R02"),
)
WAN_21_T2V_14B = StepCaches(
    _mag(_WAN_21_T2V_14B, 0.12, 2, 0.2, f"{_WAN}, the script's defaults"),
    _mag(_WAN_21_T2V_14B, 0.24, 6, 0.2, f"{_WAN}, E024K6R02"),
)
WAN_21_I2V_480P = StepCaches(
    _mag(_WAN_21_I2V_480P, 0.12, 4, 0.2, f"{_WAN}, E012K4R02"),
    _mag(_WAN_21_I2V_480P, 0.24, 6, 0.2, f"{_WAN}, E024K6R02"),
)
WAN_21_I2V_720P = StepCaches(
    _mag(_WAN_21_I2V_720P, 0.12, 4, 0.2, f"{_WAN}, E012K4R02"),
    _mag(_WAN_21_I2V_720P, 0.24, 6, 0.2, f"{_WAN}, E024K6R02"),
)
WAN_22_T2V_A14B = StepCaches(
    _mag(_WAN_22_T2V_A14B, 0.06, 2, 0.4, f"{_WAN_22}, E006K2R04"),
    _mag(_WAN_22_T2V_A14B, 0.12, 2, 0.4, _FASTER_22),
)
WAN_22_I2V_A14B = StepCaches(
    _mag(_WAN_22_I2V_A14B, 0.06, 2, 0.1, f"{_WAN_22}, E006K2R01"),
    _mag(_WAN_22_I2V_A14B, 0.12, 2, 0.1, _FASTER_22),
)
WAN_22_TI2V_5B = StepCaches(
    _mag(_WAN_22_TI2V_5B, 0.06, 2, 0.2, f"{_WAN_22}, E006K2R02"),
    _mag(_WAN_22_TI2V_5B, 0.12, 2, 0.2, _FASTER_22),
)
HUNYUAN_VIDEO = StepCaches(
    _mag(_HUNYUAN_VIDEO, 0.12, 4, 0.2, f"{_HUNYUAN}, the slower setting in its comment"),
    _mag(_HUNYUAN_VIDEO, 0.24, 6, 0.2, _HUNYUAN),
)
# Measured here, against the same seeds without a cache, 20 steps, three prompts: 0.08 leaves out 19 % of the calls at
# 34.9 dB on average (23.6 the worst), 0.2 60 % at 30.4 dB (21.8). diffusers' default leaves out none.
TINY = StepCaches(_first_block(0.08, "docs/generate.md"), _first_block(0.2, "docs/generate.md"))

_DIFFUSERS = _first_block(0.05, "diffusers: FirstBlockCacheConfig's default")
_EXAMPLE = _first_block(0.2, "diffusers: apply_first_block_cache's example")
_PARA = "chengzeyi/ParaAttention: first_block_cache/diffusers_adapters"
# By pipelines, for models whose own are not published: all whose blocks diffusers' hooks know.
PIPELINE_CACHES = {
    "CogVideoXFunControlPipeline": StepCaches(_first_block(0.025, f"{_PARA}/cogvideox.py"), _EXAMPLE),
    "CogVideoXImageToVideoPipeline": StepCaches(_first_block(0.025, f"{_PARA}/cogvideox.py"), _EXAMPLE),
    "CogVideoXPipeline": StepCaches(_first_block(0.025, f"{_PARA}/cogvideox.py"), _EXAMPLE),
    "HunyuanVideoImageToVideoPipeline": StepCaches(_first_block(0.025, f"{_PARA}/hunyuan_video.py"), _EXAMPLE),
    "HunyuanVideoPipeline": StepCaches(_first_block(0.025, f"{_PARA}/hunyuan_video.py"), _EXAMPLE),
    "LTXConditionPipeline": StepCaches(_DIFFUSERS, _EXAMPLE),
    "LTXImageToVideoPipeline": StepCaches(_DIFFUSERS, _EXAMPLE),
    "LTXPipeline": StepCaches(_DIFFUSERS, _EXAMPLE),
    "MochiPipeline": StepCaches(_first_block(0.035, f"{_PARA}/mochi.py"), _EXAMPLE),
    "WanImageToVideoPipeline": StepCaches(_DIFFUSERS, _EXAMPLE),
    "WanPipeline": StepCaches(_DIFFUSERS, _EXAMPLE),
}
