"""Several requests of one model at once: at every step the transformer is called on all their clips, packed.

Each run is the pipeline's own, in a thread of its own, with its own scheduler, noise and events; none of them ever sees
another's clip. Where their calls meet is ``meeting``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from radial.attention.install import apply, transformers_of
from radial.attention.packed.clips import PackedClips, packed_model
from radial.errors import RadialError, RequestError
from radial.generation.acceleration.meeting import Ended, Meeting, shell_of
from radial.generation.pipeline import generate
from radial.generation.resume import OnStep
from radial.generation.snapshot import Snapshot
from radial.generation.watch import Event, OnEvent
from radial.loading.load import LoadedModel, load, quiet
from radial.plans.policy import Schedule
from radial.request import GenerationRequest
from radial.video.clip import Video

# What runs that share calls have in common, beside the model as it is loaded.
_SHARED = ("num_inference_steps", "sampler", "flow_shift", "precision")


def generate_together(
    requests: Sequence[GenerationRequest],
    *,
    model: LoadedModel | None = None,
    on_event: Callable[[int, Event], None] = lambda number, event: None,
) -> list[Video | RadialError]:
    """Generate one video of each request: in their order the videos, or for what reason there is none.

    Args:
        requests: of one model and as many steps each; sizes, prompts, seeds and guidance may differ.
        model: a model loaded before, to save loading it again.
        on_event: told the number of a request, and its stage and step.

    Raises:
        RequestError: these requests cannot share calls; raised before anything is rendered.
        ModelError: the model cannot be loaded, or packed clips are not known of it.
    """
    with Together(requests) as together:
        together.use(model or load(together.requests[0]))
        made: list[Video | BaseException | None] = [None] * len(together.requests)

        def run(number: int) -> None:
            try:
                with together.taking_turns(number):
                    made[number] = together.generate(number, functools.partial(on_event, number))
            except BaseException as error:  # to be told by the thread that asked
                made[number] = error

        together.run(run)
    return [_outcome(one) for one in made]


class Together:
    """Runs that share calls, each in a thread of its own. Use it as a context manager.

    Args:
        requests: see :func:`generate_together`.

    Raises:
        RequestError: these requests cannot share calls.
    """

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        if not requests:
            raise RequestError("there are no requests to generate together")
        self.requests = [request.resolve() for request in requests]
        _check(self.requests)
        self._meeting = Meeting(len(self.requests))
        self._stack = contextlib.ExitStack()
        self._model: LoadedModel | None = None
        self._shells: list[Any] = []

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def use(self, model: LoadedModel) -> None:
        """Make the clips by a model, which is no other run's meanwhile.

        Raises:
            RequestError: it is not whole on its device, or has several transformers.
            ModelError: packed clips are not known of it.
        """
        transformer = _only_transformer(model)
        packed_model(transformer)
        self._shells = [shell_of(model.pipe, self._meeting, number) for number in range(len(self.requests))]
        with contextlib.ExitStack() as stack:
            stack.enter_context(quiet())
            attention = stack.enter_context(_attention(self.requests[0], transformer, self._meeting, self._shells))
            self._meeting.packed = stack.enter_context(PackedClips(transformer, attention))
            self._stack = stack.pop_all()
        self._model = model

    @property
    def going_on(self) -> frozenset[int]:
        """The numbers of the runs that have not ended."""
        return self._meeting.going_on

    def run(self, one: Callable[[int], None]) -> None:
        """Call something with each run's number, in threads, and wait for them all; it is to take its turns."""
        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(len(self.requests))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # Ctrl+C
            self._meeting.end()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def taking_turns(self, number: int) -> contextlib.AbstractContextManager[None]:
        """A run's turn, from its first word to its last: others go on while it waits for what it calls."""
        return self._meeting.taking_turns(number)

    def wait_for_others(self, number: int) -> None:
        """Within a run: go on once every other one has come to a call, waits too, or has ended."""
        self._meeting.wait(number)

    def generate(
        self, number: int, on_event: OnEvent = lambda event: None, on_step: OnStep | None = None,
        snapshot: Snapshot | None = None,
    ) -> Video:  # fmt: skip
        """Generate a request's video within its turn; see :func:`radial.generate`.

        Raises:
            KeyboardInterrupt: the others were ended by it.
        """
        assert self._model is not None
        self._meeting.tell[number] = lambda note: on_event(Event("denoise", note=note))
        own = replace(self._model, pipe=self._shells[number])
        try:
            with _on(self._model.device):
                (video,) = generate(
                    self.requests[number], model=own, on_event=on_event, on_step=on_step, snapshot=snapshot
                )
        except Ended as error:
            raise KeyboardInterrupt from error
        return replace(video, receipt=video.receipt | {"packed": self._meeting.together[number]})


def why_alone(request: GenerationRequest) -> str | None:
    """What of a resolved request does not go with others that share its calls; None where all does."""
    steps = request.num_inference_steps or 1
    given = (
        ("cache", request.cache != "off"), ("batched_guidance", request.batched_guidance),
        ("guided_steps", len(request.guided_steps) < steps), ("then", request.then),
        ("dense_above", request.dense_above),
        ("positions beyond the native length", request.stretched_positions is not None),
    )  # fmt: skip
    return next((what for what, is_given in given if is_given), None)


def why_apart(one: GenerationRequest, other: GenerationRequest) -> str | None:
    """Why two resolved requests cannot share calls; None where they can, as far as they go with others at all."""
    if one.model != other.model or one.loras != other.loras:
        return "are of one model and its adapters"
    for name in _SHARED:
        if getattr(one, name) != getattr(other, name):
            return f"share {name}: it is {getattr(one, name)} of one and {getattr(other, name)} of another"
    if one.attention_settings != other.attention_settings:
        return "share the settings of attention, and these differ"
    return None


def _outcome(made: Video | BaseException | None) -> Video | RadialError:
    if isinstance(made, (Video, RadialError)):
        return made
    assert made is not None
    raise made


def _check(requests: Sequence[GenerationRequest]) -> None:
    """Refuse requests that cannot share calls."""
    for request in requests:
        if request.num_videos != 1:
            raise RequestError(f"requests that are made together are of one video each, not {request.num_videos}")
        if (why := why_apart(requests[0], request)) is not None:
            raise RequestError(f"requests that are made together {why}")
        if (what := why_alone(request)) is not None:
            raise RequestError(f"{what} does not go with requests that are made together: leave it out")


def _only_transformer(model: LoadedModel) -> Any:
    found = transformers_of(model.pipe)
    if len(found) != 1:
        raise RequestError(
            f"{model.spec.name} has {len(found)} transformers, and requests are made together by models of one"
        )
    if model.profile != "full":
        raise RequestError(f"requests are made together by a model that is whole on its device, not memory "
                           f"{model.profile}")  # fmt: skip
    return found[0]


def _attention(request: GenerationRequest, transformer: Any, meeting: Meeting, shells: Sequence[Any]) -> Any:
    """The attention that all share: as each run's own, which goes by what the first one that goes on is at."""

    class Leader:
        @property
        def scheduler(self) -> Any:
            return shells[meeting.first].scheduler

    leader: Any = Leader()
    leader.transformer = transformer
    settings = request.attention_settings
    if settings.kind == "dense":
        return apply(leader, schedule=Schedule.dense())
    return apply(leader, **settings.as_arguments(), eight_bit=request.precision == "eight_bit")


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        yield
