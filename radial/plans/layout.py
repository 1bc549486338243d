"""What lies in a sequence, in order: the latent tokens of a clip, and what shares the sequence with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from radial.errors import RequestError

Kind = Literal["clip", "text", "history", "memory", "sound"]
BlockSize = Literal[16, 32, 64, 128, 256]  # tokens, that the kernels have
TokenOrder = Literal["raster", "columns"]
Tile = tuple[int, int, int]  # frames, rows and columns of tokens that lie together
FarField = Literal["drop", "mean", "pyramid"]  # what becomes of blocks that are left out


@dataclass(frozen=True)
class TokenGrid:
    """The latent tokens of one clip after patching, in diffusers' order: frame by frame, row by row.

    Attributes:
        frames: latent frames.
        height: token rows in a frame.
        width: token columns in a frame.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """All of the clip's."""
        return self.frames * self.tokens_per_frame


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one kind.

    ``grid`` says how a clip's lie, and ``tile`` that they come in columns and not in raster order: see
    :func:`radial.plans.token_order.token_order`.
    """

    kind: Kind
    tokens: int
    grid: TokenGrid | None = None
    tile: Tile | None = None

    def __post_init__(self) -> None:
        if self.tokens < 0 or (self.kind == "clip") != (self.grid is not None):
            raise RequestError(f"a segment of {self.tokens} tokens of kind {self.kind} cannot be")


@dataclass(frozen=True)
class Layout:
    """Segments one after the other."""

    segments: tuple[Segment, ...]

    @staticmethod
    def of(
        grid: TokenGrid, *, before: int = 0, after: int = 0, kind_before: Kind = "text", kind_after: Kind = "text"
    ) -> Layout:
        """One clip, with so many tokens of other kinds before and after it."""
        around = (Segment(kind_before, before), Segment("clip", grid.tokens, grid), Segment(kind_after, after))
        return Layout(tuple(segment for segment in around if segment.tokens))

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def grid(self) -> TokenGrid:
        """That of the only clip.

        Raises:
            RequestError: there is none, or there are several.
        """
        return self._clip()[0]

    @property
    def tile(self) -> Tile | None:
        """That of the only clip; None where its tokens are in raster order."""
        return next((segment.tile for segment in self.segments if segment.grid is not None), None)

    @property
    def before(self) -> int:
        """Tokens before the only clip."""
        return self._clip()[1]

    @property
    def after(self) -> int:
        """Tokens after the only clip."""
        grid, before = self._clip()
        return self.tokens - before - grid.tokens

    def _clip(self) -> tuple[TokenGrid, int]:
        start, found = 0, []
        for segment in self.segments:
            if segment.grid is not None:
                found.append((segment.grid, start))
            start += segment.tokens
        if len(found) != 1:
            raise RequestError(f"this takes a sequence with one clip, and there are {len(found)}")
        return found[0]


def as_layout(clip: TokenGrid | Layout) -> Layout:
    """A layout; of a grid alone, that of its clip."""
    return clip if isinstance(clip, Layout) else Layout.of(clip)
