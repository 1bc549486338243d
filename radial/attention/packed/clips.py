"""A transformer called on clips of unlike sizes at once: each is predicted as by a call of its own."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from radial.attention.context import AttentionContext, CallState
from radial.attention.families.find import find_family
from radial.attention.install import RadialAttention
from radial.attention.packed.pack import Budget, Pack, PackedModel, Places
from radial.attention.processors import AttentionCall, RadialProcessors
from radial.errors import ModelError, RequestError


class PackedClips:
    """Calls a transformer on packs of clips, through an installation of radial attention, which computes dense layers
    clip by clip too. Where processes share clips by it, they share packs, and all of them make the same calls. Calls of
    the transformer itself are as ever. Use it as a context manager, or call :meth:`close`.

    Args:
        transformer: of Wan 2.1 or 2.2, from text, or of HunyuanVideo.
        attention: installed on it; of a ``Schedule.dense()`` for dense attention.
        budget: what a pack may hold, any number of clips when left out.
        one_list: compute sparse attention on all clips at once, as one list of blocks, for which each is filled up to
            a whole block; otherwise on all clips of a size at once.
        options: of ``torch.compile``, where the transformer's blocks are compiled: what computes packs is then compiled
            too, once for packs of several clips and once for those of one, whatever their sizes; and once more where
            the first one has as many clips, tokens or words as something else by chance. What attends is not.

    Raises:
        ModelError: packed clips are not known of the model, or the installation puts tokens in columns, looks at their
            attention, or needs lists of each size.
    """

    def __init__(
        self, transformer: Any, attention: RadialAttention, budget: Budget | None = None, *, one_list: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        self._transformer, self._context, self._budget = transformer, attention.context, budget
        self._family = find_family(transformer)
        self._model = packed_model(transformer)
        self._shards, self._one_list = attention.shards, one_list
        if one_list and (why := _why_many(self._context)) is not None:
            raise ModelError(f"one_list does not go with {why}")
        if self._context.column_size is not None:
            raise ModelError("packed clips keep their tokens in raster order: take token_order raster")
        if self._context.probe is not None:
            raise ModelError("dense_above looks at clips by themselves, not at packs of them: leave it out")
        self._is_compiled = any(_is_compiled(block) for block, _ in self._model.blocks)
        self._places: Places | None = None  # of the last pack
        self._state = CallState()
        context = self._context
        # What attends goes by the pack itself, and stays out of what is compiled of a block.
        apart = torch.compiler.disable if self._is_compiled else (lambda attend: attend)
        own = RadialProcessors(
            apart(context.attend),
            [planner.reads_content for planner in context.planners],
            context.enter,
            dense_too=True,
        )
        text = RadialProcessors(apart(self._attend_to_text), (), lambda layer: None, dense_too=True)
        compiled = {
            forward: torch.compile(forward, dynamic=True, **options) if self._is_compiled else None
            for _, forward in self._model.blocks
        }
        with contextlib.ExitStack() as undo:
            for layer, module in self._family.self_attentions(transformer):
                _replace_processor(module, own.make(module.processor, layer), undo)
            for module in (self._family.cross_attentions or (lambda _: []))(transformer):
                _replace_processor(module, text.make(module.processor, 0), undo)
            for block, forward in self._model.blocks:
                self._replace_forward(block, forward, compiled[forward], undo)
            self._undo = undo.pop_all()

    def __call__(self, calls: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """What the transformer predicts of each clip, ``[1, C, F, H, W]``.

        Args:
            calls: for each clip the arguments that a call of the transformer would have, batches of one.

        Raises:
            RequestError: there are more clips than the budget holds, or none, or one is too small to share.
            ModelError: a call cannot be part of a pack, or calls differ in more than sizes, texts and timesteps.
        """
        if not calls:
            raise RequestError("there are no clips to pack")
        for call in calls:
            _check_alike(calls[0], call)
            if (reason := self._model.refuse(call)) is not None:
                raise ModelError(reason)
        kinds = [(self._family.layouts(self._transformer, call)[0], self._model.words(call)) for call in calls]
        order = sorted(range(len(calls)), key=lambda place: kinds.index(kinds[place]))
        layouts, words = zip(*(kinds[place] for place in order), strict=True)
        pack = Pack(layouts, words, self._context.parallel, self._one_list)
        if self._budget is not None:
            self._budget.check(pack.tokens, pack.pairs, f"these {len(calls)} clips have")
        self._context.begin_pack(self._family, self._transformer, calls, pack, self._state)
        self._places = pack.places(calls[0]["hidden_states"].device) if self._is_compiled else None
        for shards in self._shards:
            shards.rest()
        predicted = self._model.forward([calls[place] for place in order], pack, self._run)
        return [predicted[order.index(place)] for place in range(len(calls))]

    def close(self) -> None:
        """Put all that was replaced back. Calling it twice does no harm."""
        self._undo.close()

    def __enter__(self) -> PackedClips:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, block: Any, *arguments: Any) -> Any:
        # Not by what is compiled of it for calls of one clip, but with what hooks on to it.
        call = block._call_impl if self._is_compiled else block
        if torch.is_grad_enabled() and self._transformer.gradient_checkpointing:
            return self._transformer._gradient_checkpointing_func(call, *arguments)
        return call(*arguments)

    def _replace_forward(
        self, block: Any, forward: Callable[..., Any], compiled: Callable[..., Any] | None, undo: contextlib.ExitStack
    ) -> None:
        """Have a block compute packs in its own way: by its call, so that what hooks on to blocks goes on working."""
        stock, was_own = block.forward, "forward" in vars(block)

        @functools.wraps(stock)
        def forward_either(*args: Any, **kwargs: Any) -> Any:
            if not args or not isinstance(args[-1], Pack):
                return stock(*args, **kwargs)
            if args[-1] is not self._context.pack:
                raise ModelError("the backward pass of a pack comes after another call: end it before the next one")
            if compiled is not None:
                return compiled(block, *args[:-1], self._places)
            return forward(block, *args)

        block.forward = forward_either
        undo.callback(*((setattr, block, "forward", stock) if was_own else (delattr, block, "forward")))

    def _attend_to_text(self, call: AttentionCall, q_1SHD: Tensor, k_1LHD: Tensor, v_1LHD: Tensor) -> Tensor:
        """Cross-attention, each clip to its own words."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        options: dict[str, Any] = {"attn_mask": call.mask, "scale": call.scale, "backend": call.backend}
        if (pack := self._context.pack) is None:
            return dispatch_attention_fn(q_1SHD, k_1LHD, v_1LHD, **options)
        told = (pack.split(x, words=True) for x in (k_1LHD, v_1LHD))
        parts = zip(pack.split(q_1SHD), *told, strict=True)
        return pack.join([dispatch_attention_fn(*part, **options) for part in parts])


def packed_model(transformer: nn.Module) -> PackedModel:
    """How a transformer computes packed clips.

    Raises:
        ModelError: that is not known.
    """
    model = find_family(transformer).packed(transformer)
    if model is None:
        raise ModelError(
            f"clips of unlike sizes are packed for Wan 2.1 and 2.2 from text and for HunyuanVideo, not for "
            f"{type(transformer).__name__}{_kind_of_start(transformer)}"
        )
    return model


def _kind_of_start(transformer: Any) -> str:
    config = transformer.config
    seen = config.get("image_dim") is not None or config.get("image_condition_type") == "token_replace"
    return " that starts from an image" if seen else ""


def _why_many(context: AttentionContext) -> str | None:
    """What of an installation needs lists of each size; None where one list does."""
    if any(planner.reads_content for planner in context.planners):
        return "planners that read content"
    if context.far_field != "drop":
        return f"far_field {context.far_field}"
    return "eight_bit" if context.eight_bit else "backend flash" if context.backend == "flash" else None


def _is_compiled(block: Any) -> bool:
    return getattr(block, "_compiled_call_impl", None) is not None


def _replace_processor(module: Any, processor: Any, undo: contextlib.ExitStack) -> None:
    undo.callback(setattr, module, "processor", module.processor)
    module.processor = processor


def _check_alike(first: Mapping[str, Any], call: Mapping[str, Any]) -> None:
    """Refuse what differs in more than a clip's size, its words and its timestep's value."""

    def settings(call: Mapping[str, Any]) -> dict[str, Any]:
        given: dict[str, Any] = {
            name: (value.dtype, value.device, value.ndim) for name, value in call.items() if isinstance(value, Tensor)
        }
        return given | {"channels": call["hidden_states"].shape[1]}

    latents = call["hidden_states"]
    if latents.ndim != 5 or len(latents) != 1:
        raise ModelError(f"a clip of a pack is [1, C, F, H, W], not {list(latents.shape)}")
    one, other = settings(first), settings(call)
    for name in one.keys() | other.keys():
        if one.get(name) != other.get(name):
            raise ModelError(f"clips of a pack share all settings, and {name} is {_told(one.get(name))} of one and "
                             f"{_told(other.get(name))} of another")  # fmt: skip


def _told(value: Any) -> str:
    if not isinstance(value, tuple):
        return "not given" if value is None else str(value)
    dtype, device, dimensions = value
    return f"{dtype} with {dimensions} dimensions on {device}"
