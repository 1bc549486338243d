"""The latent tokens of one clip, in diffusers' order: frame by frame, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from radial.errors import RequestError


@dataclass(frozen=True)
class TokenGrid:
    """Latent tokens after patching, and the text tokens that share their sequence.

    Attributes:
        frames: latent frames.
        height: token rows in a frame.
        width: token columns in a frame.
        text: text tokens joined to the video tokens in one sequence (0 where text has its own cross-attention).
        text_first: whether the text tokens stand before the video tokens rather than after.
    """

    frames: int
    height: int
    width: int
    text: int = 0
    text_first: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.text < 0:
            raise RequestError(f"text must be 0 or more tokens, not {self.text}")

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def video_tokens(self) -> int:
        return self.frames * self.tokens_per_frame

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.video_tokens + self.text

    @property
    def video_start(self) -> int:
        """Position of the first video token."""
        return self.text if self.text_first else 0
