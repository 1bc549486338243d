"""The latent tokens of one clip, in diffusers' order: frame by frame, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from radial.errors import RequestError


@dataclass(frozen=True)
class TokenGrid:
    """Latent tokens after patching, and the other tokens that share their sequence: text, or frames of an earlier clip.

    Those see everything and everything sees them.

    Attributes:
        frames: latent frames.
        height: token rows in a frame.
        width: token columns in a frame.
        before: other tokens before the video tokens.
        after: other tokens after them.
    """

    frames: int
    height: int
    width: int
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("before", "after"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} must be 0 or more tokens, not {getattr(self, name)}")

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        return self.frames * self.tokens_per_frame

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.before + self.video_tokens + self.after
