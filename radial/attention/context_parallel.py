"""One clip over several processes: Ulysses context parallelism (DeepSpeed-Ulysses, arXiv 2309.14509).

Every process holds a run of the clip's tokens. For attention they exchange: each gets the whole sequence for a share of
the heads, so that a plan serves unchanged, and hands the result back. Tokens and heads need not divide evenly. All of
it is differentiable; a process's gradients are its part of those of the sum of every process's loss.

Shapes: B batch, S tokens, H heads, D head dim.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from radial.errors import ModelError, ProcessLost, RequestError, first_line
from radial.plans.layout import Layout


@dataclass(frozen=True)
class ContextParallel:
    """The processes that share a clip.

    Attributes:
        group: their process group; of all processes when it is ``torch.distributed.group.WORLD``.
        rank: the place of this process among them.
        size: how many they are.
    """

    group: Any
    rank: int
    size: int

    @classmethod
    def over(cls, group: Any) -> ContextParallel:
        """The processes of a group, which this process is one of."""
        return cls(group, torch.distributed.get_rank(group), torch.distributed.get_world_size(group))

    def shares(self, count: int) -> list[int]:
        """How many of ``count`` things each process holds: runs one after the other, the first ones longer by one."""
        return [count // self.size + (rank < count % self.size) for rank in range(self.size)]

    def split(self, whole: Tensor, dim: int) -> Tensor:
        """This process's run of a tensor that every process holds whole."""
        return whole.split(self.shares(whole.shape[dim]), dim)[self.rank]

    def gather(self, part: Tensor, dim: int, count: int) -> Tensor:
        """The whole of a tensor of ``count`` along ``dim``, of which each process holds its run."""
        part = part.movedim(dim, 0)
        row = part[0].numel()
        received = self._exchange([part.reshape(-1)] * self.size, [share * row for share in self.shares(count)])
        return received.view(count, *part.shape[1:]).movedim(0, dim)

    def gather_runs(self, part: Tensor, rows: list[int]) -> list[Tensor]:
        """What each process holds, ``[rows of that process, X]``."""
        row = part[0].numel()
        received = self._exchange([part.reshape(-1)] * self.size, [count * row for count in rows])
        return [run.view(-1, *part.shape[1:]) for run in received.split([count * row for count in rows])]

    def runs_to_heads(self, x_SHD: Tensor, rows: list[int]) -> list[Tensor]:
        """From this process's tokens and all heads to the tokens of each process, ``[rows of that process, own heads,
        D]``, and this process's heads."""
        columns, dim = self.shares(x_SHD.shape[1]), x_SHD.shape[2]
        own_heads = columns[self.rank]
        sizes = [count * own_heads * dim for count in rows]
        received = self._exchange([part.reshape(-1) for part in x_SHD.split(columns, 1)], sizes)
        return [run.view(count, own_heads, dim) for run, count in zip(received.split(sizes), rows, strict=True)]

    def runs_to_tokens(self, runs: list[Tensor], heads: int) -> Tensor:
        """Back from what each process is to have of this process's heads to this process's tokens and all ``heads``."""
        count, dim = len(runs[self.rank]), runs[self.rank].shape[2]
        columns = self.shares(heads)
        sizes = [count * own * dim for own in columns]
        received = self._exchange([run.reshape(-1) for run in runs], sizes)
        parts = zip(received.split(sizes), columns, strict=True)
        return torch.cat([part.view(count, own, dim) for part, own in parts if own], 1)

    def to_heads(self, x_BSHD: Tensor, layout: Layout) -> Tensor:
        """From this process's tokens and all heads to the whole sequence and this process's heads.

        Tokens that share the sequence with the clip, before and after it, are on every process already.
        """
        batch, tokens, heads, dim = x_BSHD.shape
        rows, columns = self.shares(layout.grid.tokens), self.shares(heads)
        own_rows, own_heads = rows[self.rank], columns[self.rank]
        before, video, after = x_BSHD.split([layout.before, own_rows, tokens - layout.before - own_rows], 1)
        received = self._exchange(
            [part.reshape(-1) for part in video.split(columns, 2)], [batch * count * own_heads * dim for count in rows]
        )
        if batch == 1:  # the runs lie one after the other: nothing to copy
            runs = [received.view(1, layout.grid.tokens, own_heads, dim)]
        else:
            parts = received.split([batch * count * own_heads * dim for count in rows])
            runs = [part.view(batch, count, own_heads, dim) for part, count in zip(parts, rows, strict=True)]
        around = (x.split(columns, 2)[self.rank] for x in (before, after))
        whole = [x for x in (next(around), *runs, next(around)) if x.shape[1]]
        return whole[0] if len(whole) == 1 else torch.cat(whole, 1)

    def to_tokens(self, x_BSHD: Tensor, layout: Layout, heads: int) -> Tensor:
        """From the whole sequence and this process's heads back to this process's tokens and all ``heads``."""
        batch, dim = len(x_BSHD), x_BSHD.shape[3]
        rows, columns = self.shares(layout.grid.tokens), self.shares(heads)
        starts = list(accumulate(rows, initial=layout.before))
        before, after = x_BSHD[:, : layout.before], x_BSHD[:, layout.before + layout.grid.tokens :]
        sent = []
        for start, count in zip(starts, rows, strict=False):
            # What the receiver holds: its run of the clip and, as everybody does, what lies around the clip.
            held = [x for x in (before, x_BSHD[:, start : start + count], after) if x.shape[1]]
            sent.append((held[0] if len(held) == 1 else torch.cat(held, 1)).reshape(-1))
        own = batch * (before.shape[1] + rows[self.rank] + after.shape[1]) * dim
        received = self._exchange(sent, [own * count for count in columns])
        parts = received.split([own * count for count in columns])
        return torch.cat(
            [part.view(batch, -1, count, dim) for part, count in zip(parts, columns, strict=True) if count], 2
        )

    def _exchange(self, sent: list[Tensor], sizes: list[int]) -> Tensor:
        """Send flat tensors, one to each process, and receive one of these sizes from each, end to end."""
        joined, sent_sizes = torch.cat(sent), [part.numel() for part in sent]
        if not torch.is_grad_enabled():
            # The differentiable one hands out a tensor that waits when it is used, and in inference mode it does not.
            received = joined.new_empty(sum(sizes))
            with peer_failures():
                torch.distributed.all_to_all_single(received, joined, sizes, sent_sizes, group=self.group)
            return received
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        return all_to_all_single_autograd(joined, sizes, sent_sizes, self.group)


@contextlib.contextmanager
def peer_failures() -> Iterator[None]:
    """While processes talk to each other, for what a connection that ends raises.

    Raises:
        ProcessLost: it has ended.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # this process's own
        raise
    except RuntimeError as error:  # gloo has no class of its own for it
        raise ProcessLost(f"a process that shares the clip has died ({first_line(error)[:200]})") from error


class Shards:
    """A transformer whose calls are shared: hooks that split what enters its blocks and gather what leaves them."""

    def __init__(self, transformer: nn.Module, plan: dict[str, Any], parallel: ContextParallel) -> None:
        from diffusers.models._modeling_parallel import ContextParallelOutput

        self._parallel = parallel
        self._tokens, self._before, self._after = 0, 0, 0  # of the clip, and around it; no tokens while it rests
        self._handles: list[Any] = []
        self._of_call: Callable[..., Any] | None = None
        modules = {name: transformer.get_submodule(name) for name in plan}  # all there, before one is changed
        for name, entry in plan.items():
            module = modules[name]
            if isinstance(entry, ContextParallelOutput):
                self._handles.append(module.register_forward_hook(self._gather(entry)))
                continue
            arguments = {key: value for key, value in entry.items() if isinstance(key, str)}
            outputs = {key: value for key, value in entry.items() if isinstance(key, int)}
            if arguments and module is transformer:
                self._of_call = self._split_arguments(module, arguments)
            elif arguments:
                hook = self._split_arguments(module, arguments)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if outputs:
                self._handles.append(module.register_forward_hook(self._split_outputs(outputs)))

    def begin_call(self, transformer: nn.Module, layout: Layout, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a call as this process takes them.

        Raises:
            RequestError: the clip is too small to share.
        """
        self._tokens, size = layout.grid.tokens, self._parallel.size
        self._before, self._after = layout.before, layout.after
        if self._tokens < size:
            raise RequestError(f"a clip of {self._tokens} tokens cannot be shared by {size} processes")
        return (args, kwargs) if self._of_call is None else self._of_call(transformer, args, kwargs)

    def rest(self) -> None:
        """Split and gather nothing until the next call, as where a transformer's parts are called on what is split."""
        self._tokens = 0

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _split(self, value: Any, how: Any) -> Any:
        if not self._tokens:
            return value
        if isinstance(how, (list, tuple)):
            return None if value is None else type(value)(map(self._split, value, how))
        if not isinstance(value, Tensor) or how.expected_dims not in (None, value.ndim):
            return value
        around, dim = self._before + self._after, how.split_dim
        if not around or value.shape[dim] != self._tokens + around:
            return self._parallel.split(value, dim)
        # The whole sequence: what lies around the clip stays with everybody.
        before, clip, after = value.split([self._before, self._tokens, self._after], dim)
        return torch.cat([before, self._parallel.split(clip, dim), after], dim)

    def _split_arguments(self, module: nn.Module, plan: dict[str, Any]) -> Callable[..., Any]:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        places = {names.index(name): how for name, how in plan.items()}

        def split(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            args = tuple(self._split(x, places[i]) if i in places else x for i, x in enumerate(args))
            return args, {name: self._split(x, plan[name]) if name in plan else x for name, x in kwargs.items()}

        return split

    def _split_outputs(self, plan: dict[int, Any]) -> Callable[..., Any]:
        def split(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(self._split(x, plan[i]) if i in plan else x for i, x in enumerate(output))

        return split

    def _gather(self, how: Any) -> Callable[..., Any]:
        def gather(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if not self._tokens:
                return output
            dim, own = how.gather_dim, self._parallel.shares(self._tokens)[self._parallel.rank]
            if output.shape[dim] == own:
                return self._parallel.gather(output, dim, self._tokens)
            before, clip, after = output.split([self._before, own, self._after], dim)
            return torch.cat([before, self._parallel.gather(clip, dim, self._tokens), after], dim)

        return gather


def end_process_groups() -> None:
    """End torch's process groups and their threads, those of groups that somebody still holds aside.

    A thread of gloo's that lets go of a tensor while Python ends would abort the process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    gc.collect()


def sharding_of(transformer: nn.Module, family: Any) -> dict[str, Any]:
    """What of a transformer's calls is split and gathered, in diffusers' terms.

    Raises:
        ModelError: its calls cannot be shared.
    """
    plan: dict[str, Any] | None = family.sharding(transformer)
    if plan is None:
        raise ModelError(f"a clip of {type(transformer).__name__} cannot be shared by several processes")
    return plan
