"""The pieces of a film by a model that is made for single clips: each begins with the last frames of the one before.

A text-to-video model of Wan's layout holds those frames, two latent ones, at every step where they belong at its noise
level; a model that starts from an image starts from the last frame. Nothing else of what came before is seen.

Shapes: B clips, C channels, F latent frames, H and W latent rows and columns; T frames of pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radial.attention.install import transformers_of
from radial.errors import GenerationError
from radial.files import discard, publish
from radial.generation.decoding import rescale
from radial.generation.pipeline import generate
from radial.generation.watch import Event
from radial.loading.load import LoadedModel
from radial.stories.request import OVERLAP, StoryRequest
from radial.video.encoding import Frames

_FRAMES = "frames"


class Windows:
    """Makes windows, or takes up those that were made before.

    Args:
        folder: for the images that windows start from.
    """

    def __init__(self, story: StoryRequest, model: LoadedModel, folder: Path) -> None:
        self._story, self._model, self._folder = story, model, folder
        self._windows = story.pieces()
        self._last: Frames | None = None  # of the film so far

    def make(self, piece: int, on_step: Callable[[int], None]) -> tuple[Frames, dict[str, Tensor]]:
        """A window's frames, and the last ones, with which the next begins."""
        story, (segment, latents) = self._story, self._windows[piece]
        line, added = story.lines[segment], latents * story.stride
        begins = piece > 0 and self._windows[piece - 1][0] != segment
        alone = piece == 0 or (line.cut and begins)
        # A name is worth something where there is a memory, or a model that has read of it, and nothing better.
        told = line.words(named=self._model.spec.reads_names and line.look is None)
        request = story.request.with_values(prompt=told, seed=story.seed_of(piece, 2**31), num_frames=1 + added)
        from_image = request.image is not None
        before = 0 if piece == 0 else 1
        with contextlib.ExitStack() as stack:
            if not alone and self._last is not None:
                if from_image:
                    image = self._write_image(piece)
                    stack.callback(discard, image)
                    request = request.with_values(image=str(image))
                else:
                    before = OVERLAP
                    request = request.with_values(num_frames=OVERLAP + added)
                    known = encode_last(self._model, self._last[None])
                    stack.enter_context(held(transformers_of(self._model.pipe), known))

            def tell(event: Event) -> None:
                if event.stage == "denoise" and event.step:
                    on_step(event.step - 1)

            (video,) = generate(request, model=self._model, on_event=tell)
        self._last = video.frames[-OVERLAP:]  # of what it began with, too, where it adds fewer
        return video.frames[before:], {_FRAMES: torch.from_numpy(self._last.copy())}

    def restore(self, piece: int, tensors: dict[str, Tensor], until: int) -> None:
        """Take up a window that was made before."""
        self._last = tensors[_FRAMES].numpy()

    def close(self) -> None:
        """There is nothing to put back."""

    def _write_image(self, piece: int) -> Path:
        from PIL import Image

        assert self._last is not None
        path = self._folder / f"from-{piece:06d}.png"
        image = Image.fromarray(self._last[-1])
        publish(path, lambda partial: image.save(partial), overwrite=True)
        return path


@torch.inference_mode()
def encode_last(model: LoadedModel, frames_BTHWC: Frames) -> Tensor:
    """The latents ``[B, C, F, H, W]`` of the last frames of clips, with which their next windows begin.

    Raises:
        GenerationError: they are not as many as a window begins with.
    """
    vae = model.pipe.vae
    if (count := frames_BTHWC.shape[1]) != OVERLAP:
        raise GenerationError(
            f"{count} frames are there to go on from, not {OVERLAP}: the film was begun by an earlier version; "
            "--overwrite makes it anew"
        )
    pixels = torch.from_numpy(frames_BTHWC.copy()).to(model.device, vae.dtype).permute(0, 4, 1, 2, 3)
    return rescale(vae, vae.encode(pixels / 127.5 - 1).latent_dist.mode()).float()


@contextlib.contextmanager
def held(transformers: list[Any], known_BCFHW: Tensor) -> Iterator[None]:
    """While the context lasts, the first latent frames of clips are known ones, at each call's noise level. Their noise
    is what the sampler began with, so that its own way ends where they are."""
    noise: list[Tensor] = []

    def hold(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen, (clips, _, count, _, _) = kwargs["hidden_states"], known_BCFHW.shape
        if not noise:
            noise.append(seen[:clips, :, :count].float())
        timestep = kwargs["timestep"].float()
        sigma = (timestep.max() if timestep.ndim else timestep) / 1000
        clean = (1 - sigma) * known_BCFHW + sigma * noise[0]
        passes = len(seen) // clips  # in one call
        return args, kwargs | {
            "hidden_states": torch.cat([clean.to(seen).repeat(passes, 1, 1, 1, 1), seen[:, :, count:]], 2)
        }

    handles = [one.register_forward_pre_hook(hold, with_kwargs=True, prepend=True) for one in transformers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
