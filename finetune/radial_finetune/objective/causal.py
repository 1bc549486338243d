"""Stories chunk by chunk: the model learns each chunk from the clean chunks before it, seen as generation sees them.

A step's sequence is every clean latent frame and then every noisy one (teacher forcing), with a noise level of its own
for each chunk, each frame reading its segment's text: a noisy one at times the empty text, so that guidance works, a
clean one never, as generation remembers what was asked for. What a chunk sees, and at which distances, is
:class:`~radial.plans.story.memory.StoryPlan`'s to say, here as in generation. Behind these frames are learned tokens,
where that is what segments leave, and further noisy copies of chunks, from which memory is learned.

Shapes: B stories, C channels, F latent frames, H, W latent height and width, K chunks, N segments, L tokens of a text,
E frames of further copies.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from radial.attention.story.framewise import Framewise
from radial.attention.story.packed import PackedStory
from radial.attention.story.tokens import check_tokens
from radial.errors import RequestError
from radial.plans.story.memory import Copy, StoryMemory, StoryPlan
from radial_finetune.objective.base import Objective, Text
from radial_finetune.objective.loss import as_told
from radial_finetune.objective.story_memory import BARE, RECALLED, RECONSTRUCTED, add_copied, copied_in

# A batch's text has the texts of clean frames and then those of noisy ones.
CUTS = "cuts"  # in a batch's text: bool [B, N], the segments before which the picture cuts, the same for all


class CausalLoss:
    """A :class:`Loss` of stories.

    Args:
        objective: of Wan, from text.
        memory: what a chunk sees.
        reconstruction, recall: how much the two losses of memory count, in batches whose text asks for them.
    """

    def __init__(
        self, objective: Objective, memory: StoryMemory, *, reconstruction: float = 0.0, recall: float = 0.0
    ) -> None:
        self._objective, self._memory = objective, memory
        self._weights = {RECONSTRUCTED: reconstruction, RECALLED: recall}
        self._call: Framewise | None = None

    def __call__(self, transformer: Any, x_BCFHW: Tensor, text: Text, noise_BCFHW: Tensor, sigma_B: Tensor) -> Tensor:
        """Mean squared error of the velocity of every noisy frame, ``[B, F]``, with that of its further copies.

        Args:
            sigma_B: of each chunk, ``[B, K]``; ``[B]`` for one level in a story.
        """
        if self._call is None or self._call.transformer is not transformer:
            check_tokens(transformer, self._memory)
            self._call = Framewise(transformer, with_layers=False)
        told = as_told(text, transformer)
        longest = self._objective.spec.max_sequence_length
        text_BNLD = told["prompt_embeds"].unflatten(1, (-1, longest))
        cuts = text[CUTS][0].nonzero().flatten().tolist() if CUTS in text else []
        frames = x_BCFHW.shape[2]
        count = text_BNLD.shape[1] // 2
        plan = plan_of(self._memory, frames, count, tuple(cuts))
        copied = copied_in(plan, text, self._weights)
        copies = tuple(copy for one in copied for copy in one.copies)
        index = torch.tensor([frame for one in copied for frame in one.frames], dtype=torch.long, device=x_BCFHW.device)
        sigma_BF = by_frame(sigma_B, frames)
        level = sigma_BF[:, None, :, None, None].to(x_BCFHW.dtype)
        noisy, target = (1 - level) * x_BCFHW + level * noise_BCFHW, noise_BCFHW - x_BCFHW
        packed = _packed(plan, transformer, *x_BCFHW.shape[3:], x_BCFHW.device, copies)
        learned = len(packed.learned)
        still_BF = torch.zeros_like(sigma_BF)
        timestep_BF = 1000 * torch.cat([still_BF, sigma_BF, still_BF[:, :learned], sigma_BF[:, index]], 1)
        clean = [plan.segment_of_frame(frame) for frame in range(frames)]
        told_to = clean + [count + segment for segment in clean] + list(range(learned))
        for one in copied:  # texts of each kind apart: runs of frames that read one are as long at every step
            chosen = list(dict.fromkeys(one.segments))
            told_to += [text_BNLD.shape[1] + chosen.index(segment) for segment in one.segments]
            text_BNLD = torch.cat([text_BNLD, told[BARE].unflatten(1, (-1, longest))[:, chosen]], 1)
        whole = torch.cat([x_BCFHW, noisy, x_BCFHW[:, :, :learned], noisy[:, :, index]], 2).to(transformer.dtype)
        predicted = self._call(whole, timestep_BF, text_BNLD, told_to, packed, packed.learned)
        seen, further = predicted[:, :, frames : 2 * frames], predicted[:, :, 2 * frames + learned :]
        losses_BF = (seen.float() - target.float()).square().mean((1, 3, 4))
        errors_BE = (further.float() - target[:, :, index].float()).square().mean((1, 3, 4))
        return add_copied(losses_BF, copied, errors_BE, text)

    def close(self) -> None:
        """Put the stock processors back."""
        if self._call is not None:
            self._call.close()
            self._call = None


def plan_of(memory: StoryMemory, frames: int, segments: int, cuts: tuple[int, ...] = ()) -> StoryPlan:
    """The plan of a clip of so many latent frames, whose segments share its time alike.

    Raises:
        RequestError: they are not whole chunks.
    """
    chunks, rest = divmod(frames - 1, memory.chunk_frames)
    if rest or chunks % segments or chunks == 0:
        raise RequestError(
            f"{segments} prompts in {frames} latent frames are not whole chunks of {memory.chunk_frames}: take clips "
            f"of {segments * memory.chunk_frames} latent frames, or a multiple, and one"
        )
    return StoryPlan(memory, (chunks // segments,) * segments, cuts)


def by_frame(values_BK: Tensor, frames: int) -> Tensor:
    """What chunks have, for each latent frame: ``[B, F]``; of ``[B]``, the same for all."""
    if values_BK.ndim == 1:
        return values_BK[:, None].expand(-1, frames)
    size = (frames - 1) // values_BK.shape[1]
    chunk = (torch.arange(frames, device=values_BK.device) - 1).clamp(min=0) // size
    return values_BK[:, chunk]


@functools.lru_cache(maxsize=128)
def _packed(
    plan: StoryPlan, transformer: Any, height: int, width: int, device: torch.device, copies: tuple[Copy, ...]
) -> PackedStory:
    _, rows, columns = transformer.config.patch_size
    return PackedStory(plan, transformer, height // rows, width // columns, device, copies=copies)
