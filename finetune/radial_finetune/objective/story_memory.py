"""How a run teaches memory: further noisy copies of a story's chunks, to which memory is the only source.

The two tasks of StreamingDialogue (Li et al. 2024, arXiv 2403.08312), of video: short-memory reconstruction, a copy of
a segment that sees what this segment leaves and nothing else; and long-memory reactivation, a copy of one whose figure
was there before, which sees what all earlier segments leave and nothing else. Both are told without a word of looks
where the data has such words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from radial.plans.story.memory import Copy, StoryMemory, StoryPlan
from radial.stories.script import name_in
from radial_finetune.objective.base import Text

# In a batch's text, bool [B, N]: the segments that are copied, the same for all, and those whose figure was there
# before; and the words of each segment without a word of looks, as an entry of text.
RECONSTRUCTED, RECALLED, RETURNS, BARE = "reconstructed", "recalled", "returns", "bare_embeds"


class TrainedMemory(StoryMemory):
    """What a chunk sees, and how memory is taught.

    Attributes:
        reconstruction: how much it counts that a segment is denoised from what it leaves alone; 0 for not at all.
        recall: how much it counts that a segment whose figure returns is denoised from memory alone.
        copied_share: of the segments that each of the two copies in a step, one at least.
    """

    reconstruction: Annotated[float, Field(ge=0, le=10)] = 0.0
    recall: Annotated[float, Field(ge=0, le=10)] = 0.0
    copied_share: Annotated[float, Field(gt=0, le=1)] = 0.25

    @model_validator(mode="after")
    def _teaches(self) -> TrainedMemory:
        taught = [name for name in ("reconstruction", "recall") if getattr(self, name)]
        if taught and self.kind == "none":
            raise ValueError(f'{taught[0]} teaches memory, and with kind = "none" there is none: leave it out')
        if not taught and self.copied_share != TrainedMemory.model_fields["copied_share"].default:
            raise ValueError("copied_share is of reconstruction and recall: give one of them, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_is_open(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As before there were such losses, so that runs that were begun then go on."""
        own = {name: TrainedMemory.model_fields[name].default for name in _OWN} | {"memory_tokens": None}
        return {name: value for name, value in dump(self).items() if name not in own or value != own[name]}

    @property
    def seen(self) -> StoryMemory:
        """What a chunk sees, which is all that generation asks for."""
        return StoryMemory(**{name: getattr(self, name) for name in StoryMemory.model_fields})

    @property
    def copies(self) -> int:
        """How many of the two losses there are."""
        return sum(weight > 0 for weight in (self.reconstruction, self.recall))

    def training_frames(self, frames: int) -> int:
        """About how many frames a step's sequence has, for a story of so many: a clean one and a noisy one of each,
        those of learned tokens, as if each chunk were a segment, and the copies."""
        chunks = (frames - 1) // self.chunk_frames
        learned = chunks if self.kind == "learned" else 0
        copied = max(self.chunk_frames, math.ceil(self.copied_share * (frames - 1)))
        return 2 * frames + learned + self.copies * copied

    def choose(self, segments: int, draw: float) -> dict[str, tuple[int, ...]]:
        """The segments that a step copies, by what they are copied for.

        Args:
            draw: a number in 0..1, which decides.
        """
        chosen = {}
        for name, weight, first in ((RECONSTRUCTED, self.reconstruction, 0), (RECALLED, self.recall, 1)):
            if weight and segments > first:
                chosen[name] = _spread(range(first, segments), self.copied_share, draw)
        return chosen


_OWN = ("reconstruction", "recall", "copied_share")


def _spread(segments: range, share: float, draw: float) -> tuple[int, ...]:
    """A share of segments, evenly apart. There are few such choices, so that layouts are made few times."""
    length = len(segments)
    count = max(1, round(share * length))
    first = min(int(draw * math.ceil(length / count)), math.ceil(length / count) - 1)
    return tuple(segments[first + place * length // count] for place in range(count))


def returning(words: Sequence[str]) -> tuple[bool, ...]:
    """For each segment's words, whether the figure that they name was there before."""
    names = [name_in(one) for one in words]
    return tuple(name is not None and name in names[:place] for place, name in enumerate(names))


@dataclass(frozen=True)
class Copied:
    """The chunks that a step copies for one of the two losses.

    Attributes:
        name: of the loss, as in a batch's text.
        weight: how much it counts.
        segments: of each frame of the copies.
    """

    name: str
    weight: float
    copies: tuple[Copy, ...]
    segments: tuple[int, ...]

    @property
    def frames(self) -> list[int]:
        """The latent frames that are copied, in their order."""
        return [frame for copy in self.copies for frame in copy.frames]


def copied_in(plan: StoryPlan, text: Text, weights: Mapping[str, float]) -> list[Copied]:
    """What a batch's text asks to copy of its stories, with the weight of each loss."""
    found = []
    for name, weight in weights.items():
        chosen = text[name][0].nonzero().flatten().tolist() if name in text else []
        by_segment = [(s, plan.reconstruction(s) if name == RECONSTRUCTED else plan.recall(s)) for s in chosen]
        segments = tuple(s for s, copies in by_segment for copy in copies for _ in copy.frames)
        if segments:
            found.append(Copied(name, weight, tuple(copy for _, copies in by_segment for copy in copies), segments))
    return found


def add_copied(losses_BF: Tensor, copied: Sequence[Copied], errors_BE: Tensor, text: Text) -> Tensor:
    """Losses of frames, each with those of its copies on top: the mean of all is that of the frames and of each kind of
    copies, times its weight. A story whose figure is new where others recall theirs has nothing to recall.

    Args:
        errors_BE: of the copies' frames, one kind after the other.
    """
    counts = [len(one.segments) for one in copied]
    for one, errors in zip(copied, errors_BE.split(counts, 1), strict=True):
        if one.name == RECALLED:
            errors = errors * text[RETURNS][:, list(one.segments)]
        index = torch.tensor(one.frames, device=errors.device)
        losses_BF = losses_BF.index_add(1, index, errors * (one.weight * losses_BF.shape[1] / len(one.segments)))
    return losses_BF
