"""The radial rule: which pairs of tokens attend to each other, as a pure function of their distance.

Attention energy falls with distance in time and in space, so a token sees its own and the neighbouring frames whole,
farther frames through a window that halves whenever the distance doubles, and the first frame always.
Positions within a frame are raster positions, so a window is a band of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radial.errors import RequestError

Variant = Literal["published", "paper"]


@dataclass(frozen=True)
class RadialPattern:
    """Which token pairs are kept.

    Attributes:
        decay: scales the window of the published rule; smaller is sparser. The paper's variant has no such factor.
        sink_frames: leading frames that every token attends to.
        variant: ``"published"`` is the rule of the authors' released code, ``"paper"`` is Eq. 4 of arXiv 2506.19852.
        skip_width: in the published rule, distances whose undecayed window is narrower than this are thinned out
            to every few frames. The released code has 128 here, whatever the block size.
    """

    decay: float = 1.0
    sink_frames: int = 1
    variant: Variant = "published"
    skip_width: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 16:
            raise RequestError(f"decay must be above 0 and at most 16, not {self.decay}; try 0.2 to 1.0")
        if self.sink_frames < 0:
            raise RequestError(f"sink_frames must be 0 or more, not {self.sink_frames}")
        if self.variant not in ("published", "paper"):
            raise RequestError(f"variant must be published or paper, not {self.variant!r}")
        if self.skip_width < 1:
            raise RequestError(f"skip_width must be at least 1, not {self.skip_width}")

    def window(self, distance: int, tokens_per_frame: int, block_size: int = 128) -> int:
        """Half-width of the window between frames ``distance`` apart: raster positions k and l attend to each
        other when ``|k - l|`` is at most this. -1 when the frames do not see each other, ``tokens_per_frame``
        when they see each other whole. Sink frames are not considered.
        """
        if self.variant == "paper":
            return self._paper_window(distance, tokens_per_frame)
        if distance <= 1:
            return tokens_per_frame
        reference = 2.0 ** tokens_per_frame.bit_length() / 2 ** distance.bit_length()
        if reference < self.skip_width and distance % int(self.skip_width / reference):
            return -1
        return min(int(max(reference * self.decay, block_size)), tokens_per_frame)

    def _paper_window(self, distance: int, tokens_per_frame: int) -> int:
        power = 2 ** (max(distance, 1).bit_length() - 1)
        if power <= tokens_per_frame:
            # |k - l| + 1 <= s / P; the diagonal is kept in any case.
            return max(tokens_per_frame // power - 1, 0)
        return 0 if distance % -(-power // tokens_per_frame) == 0 else -1
