"""Ways to attend, judged on queries, keys and values that somebody captured from a model: how much of the softmax's
mass each keeps, and how far its output is off.

Shapes: B batch, S tokens, H heads, D head dim, R rows of blocks, C columns of blocks, T tokens of a row.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from radial.attention.probe import held_against_full, kept_blocks
from radial.errors import RequestError, first_line
from radial.loading.devices import find_device
from radial.plans.block_runs import check_block_size
from radial.plans.layout import Layout, TokenGrid
from radial.plans.pattern import RadialPattern
from radial.plans.planner import AdaptivePlanner, Planner, Site, StaticPlanner
from radial.plans.token_order import in_columns, token_order
from radial_kernels.block_sparse import BlockLists, PooledLists, attention

DENSITIES = (0.15, 0.3)  # of adaptive attention
ROWS = 8  # blocks of queries that are looked at, of each capture
_NUMBERS = 1 << 26  # that are held at one time
_NAMES = {"q": ("q", "query"), "k": ("k", "key"), "v": ("v", "value")}
_GOLDEN = 0.618033988749895


@dataclass(frozen=True, eq=False)
class Capture:
    """Attention of one layer at one step, after positions were put on queries and keys.

    Attributes:
        name: the file, and what of it where there is more than one.
    """

    name: str
    q_BSHD: Tensor = field(repr=False)
    k_BSHD: Tensor = field(repr=False)
    v_BSHD: Tensor = field(repr=False)


@dataclass(frozen=True)
class Way:
    """A way to attend.

    Attributes:
        mean: whether blocks that are left out come in as means.
    """

    name: str
    planner: Planner
    columns: bool = False
    mean: bool = False


@dataclass(frozen=True)
class Judged:
    """Of one way on one capture, over the rows that were looked at.

    Attributes:
        density: share of blocks that these rows keep.
        recall: share of the softmax's mass in them.
        error: relative square error of the output against full attention.
    """

    density: float
    recall: float
    error: float


@dataclass(frozen=True)
class RandomPlanner:
    """The diagonal, the first column and blocks drawn by a seed: what any choice of blocks has to beat."""

    density: float
    block_size: int

    reads_content: ClassVar[bool] = False

    def lists(self, site: Site, q_BSHD: Tensor | None = None, k_BSHD: Tensor | None = None) -> BlockLists:
        """The same for all heads."""
        rows = -(-site.layout.tokens // self.block_size)
        drawn = torch.rand(rows, rows, generator=torch.Generator().manual_seed(0))
        drawn.fill_diagonal_(-1)
        drawn[:, 0] = -1
        count = max(1, round(self.density * rows))
        kept = drawn <= drawn.sort(1).values[:, [count - 1]]
        return BlockLists.of_mask(kept, self.block_size).to(site.device)


def ways(decay: float, densities: Sequence[float], block_size: int) -> list[Way]:
    """The published rule, what means and columns make of it, and by content at each density beside random blocks."""
    radial = StaticPlanner(RadialPattern(decay=decay), block_size)
    found = [Way("radial", radial), Way("radial, columns, means", radial, columns=True, mean=True)]
    for density in densities:
        for name, planner in (
            ("adaptive", AdaptivePlanner(density, block_size)), ("random", RandomPlanner(density, block_size)),
        ):  # fmt: skip
            found.append(Way(f"{name} {density:g}, columns, means", planner, columns=True, mean=True))
    return found


def read_captures(folder: Path) -> list[tuple[Path, str]]:
    """The captures in a folder's safetensors files: each a file, and what its tensors' names begin with.

    Raises:
        RequestError: there are none, or one lacks a part.
    """
    files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
    if not files:
        others = " (files of other kinds are not read: save tensors q, k, v by safetensors)" if folder.is_dir() else ""
        raise RequestError(f"captures must be a folder with .safetensors files, and there is none in {folder}{others}")
    found = []
    for file in files:
        with _opened(file) as opened:
            names = list(opened.keys())
        own = sorted({_before_the_name(name) for name in names if _part_of(name) is not None})
        if not own:
            raise RequestError(f"{file.name} holds no capture: it is to have tensors q, k and v")
        for begins in own:
            parts = {_part_of(name) for name in names if _before_the_name(name) == begins}
            if missing := [part for part in _NAMES if part not in parts]:
                raise RequestError(f"{file.name} has no {begins}{missing[0]} beside what it has of that capture")
            found.append((file, begins))
    return found


def read_capture(file: Path, begins: str, layout_of: Callable[[int], Layout], device: torch.device) -> Capture:
    """One of them.

    Raises:
        RequestError: its tensors are none that attend to each other, of another length than the clip, or not all
            numbers.
    """
    with _opened(file) as opened:
        own = {_part_of(name): name for name in opened.keys() if _before_the_name(name) == begins}  # noqa: SIM118
        tensors = {part: opened.get_tensor(own[part]) for part in _NAMES}
    where = f"{file} ({begins[:-1]})" if begins else str(file)
    placed = {}
    for part, tensor in tensors.items():
        if tensor.ndim == 3:
            tensor = tensor[None]
        if tensor.ndim != 4 or not tensor.is_floating_point() or not tensor.numel():
            raise RequestError(
                f"{part} of {where} must be numbers [batch, tokens, heads, head dim], not {list(tensor.shape)}"
            )
        if tensor.shape[1] < tensor.shape[2]:  # there are more tokens than heads, whichever come first
            tensor = tensor.transpose(1, 2)
        if not torch.isfinite(tensor).all():
            raise RequestError(f"{part} of {where} holds what is no number")
        placed[part] = tensor.to(device)
    q, k, v = placed["q"], placed["k"], placed["v"]
    if k.shape[2] and q.shape[2] % k.shape[2] == 0 and k.shape[:3] == v.shape[:3]:  # grouped queries
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    if q.shape != k.shape or k.shape != v.shape:
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in placed.items())
        raise RequestError(f"{where} holds no attention of a sequence to itself: {shapes}")
    layout_of(q.shape[1])  # or it raises
    return Capture(where, q, k, v)


def layout_for(grid: TokenGrid, before: int) -> Callable[[int], Layout]:
    """How sequences of a clip lie, with so many tokens before it and what is left behind it."""

    def of(tokens: int) -> Layout:
        after = tokens - grid.tokens - before
        if after < 0:
            around = f" and {before} before it" if before else ""
            raise RequestError(
                f"the captures have {tokens:,} tokens, fewer than the {grid.tokens:,} of a clip of "
                f"{grid.frames}x{grid.height}x{grid.width}{around}: grid is latent frames x rows x columns of tokens"
            )
        return Layout.of(grid, before=before, after=after)

    return of


def judge(capture: Capture, layout: Layout, way: Way, block_size: int) -> Judged:
    """Hold a way to attend against full attention, on some blocks of queries all over the clip.

    Raises:
        RequestError: there is no such block size.
    """
    check_block_size(block_size)
    q, k, v = capture.q_BSHD, capture.k_BSHD, capture.v_BSHD
    if way.columns:
        layout = in_columns(layout, block_size)
        q, k, v = (_turned(x, layout) for x in (q, k, v))
    lists = way.planner.lists(Site(layout, 1, 0, "", q.device), q, k)
    blocks = -(-layout.tokens // block_size)
    rows_R = _rows(layout, block_size).to(q.device)
    kept_BHRC = kept_blocks(lists, rows_R, blocks)
    some = BlockLists.of_mask(kept_BHRC, block_size)
    sums = torch.zeros(4, dtype=torch.float64, device=q.device)
    tokens_T = (rows_R[:, None] * block_size + torch.arange(block_size, device=q.device)).flatten()
    tokens_T = tokens_T[tokens_T < layout.tokens]  # the last block, which comes last, may be shorter
    ours = attention(
        q[:, tokens_T], k, v, some,
        tail=PooledLists.complement(some, layout.tokens) if way.mean else None,
    )  # fmt: skip
    at_once = max(1, _NUMBERS // (block_size * layout.tokens))
    for entry in range(len(q)):
        for place, of_row in enumerate(tokens_T.split(block_size)):
            for first in range(0, q.shape[2], at_once):
                heads = slice(first, first + at_once)
                own = slice(place * block_size, place * block_size + len(of_row))
                q_HTD, ours_HTD = (x.transpose(0, 1) for x in (q[entry, of_row, heads], ours[entry, own, heads]))
                k_HSD, v_HSD = (x[entry, :, heads].transpose(0, 1) for x in (k, v))
                kept_HC = kept_BHRC[min(entry, len(kept_BHRC) - 1), :, place].expand(q.shape[2], -1)[heads]
                sums += held_against_full(q_HTD, k_HSD, v_HSD, ours_HTD, kept_HC[:, None], block_size)
    apart, real, mass, looked_at = sums.tolist()
    return Judged(float(kept_BHRC.float().mean()), mass / looked_at, apart / max(real, 1e-30))


def judge_folder(
    folder: Path, grid: str | None, before: int, decay: float | None, densities: Sequence[float] | None,
    block_size: int, device: str,
) -> dict[str, dict[str, Judged]]:  # fmt: skip
    """Every way on every capture of a folder, by their names; one capture is in memory at a time.

    Args:
        grid: FxHxW, latent frames, rows and columns of tokens.
        before: tokens before the clip's.

    Raises:
        RequestError: a value is out of place, or see :func:`read_captures` and :func:`read_capture`.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})", grid or "")
    if not match:
        raise RequestError(f"grid must be latent frames x rows x columns of tokens, such as 21x30x52, not {grid}")
    if wrong := [one for one in densities or () if not 0.02 <= one <= 0.95]:
        raise RequestError(f"density must be from 0.02 to 0.95, not {wrong[0]:g}")
    layout_of = layout_for(TokenGrid(*map(int, match.groups())), before)
    check_block_size(block_size)
    wanted = ways(1.0 if decay is None else decay, densities or DENSITIES, block_size)
    found = {}
    for file, begins in read_captures(folder):
        capture = read_capture(file, begins, layout_of, torch.device(find_device(device)))
        layout = layout_of(capture.q_BSHD.shape[1])
        found[capture.name] = {way.name: judge(capture, layout, way, block_size) for way in wanted}
    return found


def summary(found: Mapping[str, Mapping[str, Judged]]) -> dict[str, dict[str, str]]:
    """Means over captures, and the worst of them, of each way."""
    by_way = {way: [one[way] for one in found.values()] for way in next(iter(found.values()))}
    return {
        "density": {way: f"{fmean(one.density for one in judged):.3f}" for way, judged in by_way.items()},
        "recall": {way: f"{fmean(one.recall for one in judged):.3f}" for way, judged in by_way.items()},
        "error": {way: f"{fmean(one.error for one in judged):.2e}" for way, judged in by_way.items()},
        "worst error": {way: f"{max(one.error for one in judged):.2e}" for way, judged in by_way.items()},
    }


def told(found: Mapping[str, Mapping[str, Judged]]) -> dict[str, Any]:
    """The same for a file, capture by capture."""
    return {name: {way: asdict(one) for way, one in judged.items()} for name, judged in found.items()}


def _rows(layout: Layout, block_size: int) -> Tensor:
    """Blocks of queries with tokens of the clip alone, one out of each of :data:`ROWS` equal parts; or all."""
    first, end = -(-layout.before // block_size), (layout.before + layout.grid.tokens) // block_size
    if end - first <= ROWS:
        return torch.arange(min(first, layout.tokens // block_size), max(end, first + 1))
    parts = torch.arange(ROWS, dtype=torch.float64)
    return first + ((parts + (parts + 1) * _GOLDEN % 1) * ((end - first) / ROWS)).long()


def _turned(x_BSHD: Tensor, layout: Layout) -> Tensor:
    """A sequence with the clip's tokens in columns."""
    assert layout.tile is not None
    order = torch.from_numpy(token_order(layout.grid, layout.tile).copy()) + layout.before
    whole = torch.arange(layout.tokens)
    whole[layout.before : layout.before + layout.grid.tokens] = order
    return x_BSHD[:, whole.to(x_BSHD.device)]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{file.name} is no safetensors file: {first_line(error)}") from error


def _part_of(name: str) -> str | None:
    """Which of the three a tensor is, by the last word of its name."""
    last = name.rpartition(".")[2].lower()
    return next((part for part, names in _NAMES.items() if last in names), None)


def _before_the_name(name: str) -> str:
    return "".join(name.rpartition(".")[:2])
