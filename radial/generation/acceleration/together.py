"""Several requests of one model at once: at every step the transformer is called on all their clips, packed.

Each run is the pipeline's own, in a thread of its own, with its own scheduler, noise and events. Its transformer is a
stand-in that hands its calls over and waits for what comes of them; once every run that goes on has come to a call,
those of one timestep are made as a pack. One thread runs at a time, and none of them ever sees another's clip.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from radial.attention.install import apply, transformers_of
from radial.attention.packed.clips import PackedClips, packed_model
from radial.errors import RadialError, RequestError
from radial.generation.pipeline import generate
from radial.generation.watch import Event
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
    if not requests:
        raise RequestError("there are no requests to generate together")
    resolved = [request.resolve() for request in requests]
    _check(resolved)
    model = model or load(resolved[0])
    (transformer,) = _only_transformer(model)
    packed_model(transformer)
    meeting = _Meeting(transformer, len(resolved))
    shells = [_shell_of(model.pipe, meeting, number) for number in range(len(resolved))]
    made: list[Video | BaseException | None] = [None] * len(resolved)

    def run(number: int) -> None:
        try:
            with meeting.taking_turns(number), _on(model.device):
                own = replace(model, pipe=shells[number])
                (made[number],) = generate(
                    resolved[number], model=own, on_event=functools.partial(on_event, number)
                )  # fmt: skip
        except BaseException as error:  # to be told by the thread that asked
            made[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(resolved))]
    with (
        quiet(), _attention(resolved[0], transformer, meeting, shells) as attention,
        PackedClips(transformer, attention) as meeting.packed,
    ):  # fmt: skip
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # Ctrl+C
            meeting.end()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    return [_outcome(one, len(resolved)) for one in made]


def _outcome(made: Video | BaseException | None, together: int) -> Video | RadialError:
    if isinstance(made, Video):
        return replace(made, receipt=made.receipt | {"packed": together})
    if isinstance(made, RadialError):
        return made
    assert made is not None
    assert isinstance(made, BaseException)
    raise made


def _check(requests: Sequence[GenerationRequest]) -> None:
    """Refuse requests that cannot share calls."""
    first = requests[0]
    for request in requests:
        if request.num_videos != 1:
            raise RequestError(f"requests that are made together are of one video each, not {request.num_videos}")
        if request.model != first.model or request.loras != first.loras:
            raise RequestError("requests that are made together are of one model and its adapters")
        for name in _SHARED:
            if getattr(request, name) != getattr(first, name):
                raise RequestError(
                    f"requests that are made together share {name}: it is {getattr(first, name)} of one and "
                    f"{getattr(request, name)} of another"
                )
        if request.attention_settings != first.attention_settings:
            raise RequestError("requests that are made together share the settings of attention, and these differ")
        steps = request.num_inference_steps or 1
        for what, given in (
            ("cache", request.cache != "off"), ("batched_guidance", request.batched_guidance),
            ("guided_steps", len(request.guided_steps) < steps), ("then", request.then),
            ("positions beyond the native length", request.stretched_positions is not None),
        ):  # fmt: skip
            if given:
                raise RequestError(f"{what} does not go with requests that are made together: leave it out")


def _only_transformer(model: LoadedModel) -> list[Any]:
    found = transformers_of(model.pipe)
    if len(found) != 1:
        raise RequestError(
            f"{model.spec.name} has {len(found)} transformers, and requests are made together by models of one"
        )
    if model.profile != "full":
        raise RequestError(f"requests are made together by a model that is whole on its device, not memory "
                           f"{model.profile}")  # fmt: skip
    return found


def _attention(request: GenerationRequest, transformer: Any, meeting: _Meeting, shells: Sequence[Any]) -> Any:
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


class _Ended(Exception):
    """Whoever asked for the videos does not wait for them any more."""


class _Meeting:
    """Where the runs' calls come together."""

    def __init__(self, transformer: Any, count: int) -> None:
        self.packed: PackedClips | None = None
        self._transformer = transformer
        self._turn = threading.Condition()
        self._going_on = set(range(count))
        self._calls: dict[int, dict[str, Any]] = {}
        self._made: dict[int, Tensor | Exception] = {}
        self._ended = False

    @property
    def first(self) -> int:
        """The first run that goes on."""
        return min(self._going_on, default=0)

    @contextlib.contextmanager
    def taking_turns(self, number: int) -> Iterator[None]:
        """Run while all others wait for their calls; what others wait for is made when this one ends."""
        with self._turn:
            try:
                yield
            finally:
                self._going_on.discard(number)
                self._make()

    def call(self, number: int, call: dict[str, Any]) -> Tensor:
        """What the transformer predicts of a run's clip."""
        self._calls[number] = call
        self._make()
        self._turn.wait_for(lambda: self._ended or number in self._made)
        made = self._made.pop(number, _Ended())
        if isinstance(made, Exception):
            raise made
        return made

    def end(self) -> None:
        """Have runs that still wait end."""
        with self._turn:
            self._ended = True
            self._turn.notify_all()

    def _make(self) -> None:
        """Make the calls, once every run that goes on has come to one."""
        if self._ended or not self._calls or self._calls.keys() < self._going_on:
            return
        calls, self._calls = self._calls, {}

        def at(number: int) -> float:
            return float(calls[number]["timestep"].flatten().max())

        for _, group in itertools.groupby(sorted(calls, key=at), key=at):
            numbers = list(group)
            try:
                made: Sequence[Tensor | Exception] = self._predict([calls[number] for number in numbers])
            except Exception as error:
                made = [error] * len(numbers)
            self._made.update(zip(numbers, made, strict=True))
        self._turn.notify_all()

    @torch.inference_mode()
    def _predict(self, calls: list[dict[str, Any]]) -> list[Tensor]:
        assert self.packed is not None
        try:
            return self.packed(calls)
        except torch.OutOfMemoryError:
            if len(calls) == 1:
                raise
        return [self.packed([call])[0] for call in calls]


def _shell_of(pipe: Any, meeting: _Meeting, number: int) -> Any:
    """A pipeline of the same parts, whose transformer is a stand-in and whose scheduler and autoencoder are its own."""
    shell = copy.copy(pipe)
    shell.transformer = _stand_in(pipe.transformer, functools.partial(meeting.call, number))
    shell.scheduler, shell.vae = copy.deepcopy(pipe.scheduler), copy.copy(pipe.vae)
    return shell


def _stand_in(transformer: Any, make: Callable[[dict[str, Any]], Tensor]) -> Any:
    """What a pipeline takes for the transformer. Radial attention that a run installs on it plans and counts as on the
    real one."""
    from diffusers import CacheMixin

    kind = type(transformer)
    signature = inspect.signature(kind.forward)

    class StandIn(nn.Module, CacheMixin):
        config, dtype, device = transformer.config, transformer.dtype, transformer.device

        @functools.wraps(kind.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            call = dict(signature.bind(self, *args, **kwargs).arguments)
            del call["self"]
            as_tuple = not call.pop("return_dict", True)
            made = make({name: value for name, value in call.items() if value is not None})
            return (made,) if as_tuple else SimpleNamespace(sample=made)

    StandIn.__name__ = kind.__name__
    stand_in: Any = StandIn()
    for name in ("blocks", "transformer_blocks", "single_transformer_blocks"):
        blocks = getattr(transformer, name, None)
        if blocks is not None:
            setattr(stand_in, name, [_block_of(block) for block in blocks])
    return stand_in


def _block_of(block: Any) -> Any:
    """What of a block says how it attends."""
    name = "attn1" if hasattr(block, "attn1") else "attn"
    attention = getattr(block, name)
    own = SimpleNamespace(processor=copy.copy(attention.processor), heads=attention.heads, to_q=attention.to_q)
    return SimpleNamespace(**{name: own})
