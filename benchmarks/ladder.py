"""How near sparse attention comes to dense, one change at a time: ``python benchmarks/ladder.py --out FOLDER``.

On the bundled model, at one seed a prompt, with its first layer dense. Three levels: the output of attention (relative
square error, mean over some layers, along the dense clip's way), the velocity that a whole step predicts (the same,
where only that step is sparse), and the clip (PSNR against the dense one of the same seed). Prompts are held out from
the model's training. Every number is kept in the folder as it comes, so that a later call goes on.

Shapes: B batch, S tokens, H heads, D head dim, R block rows, C block columns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

import radial
from radial.attention.context import AttentionContext
from radial.attention.install import RadialAttention
from radial.attention.processors import AttentionCall
from radial.generation.sampler import replaced, scheduler_for
from radial.loading.load import LoadedModel, load
from radial.plans.far_field import pool_rest
from radial.plans.layout import FarField, Layout, TokenGrid, TokenOrder
from radial.plans.planner import AdaptivePlanner, Site, StaticPlanner
from radial.plans.token_order import in_columns, token_order
from radial.request import GenerationRequest, make_request
from radial_finetune.evaluate import shapes
from radial_kernels.block_sparse import BlockLists, PooledLists, attention
from radial_kernels.block_sparse.reference import token_mask
from radial_kernels.block_sparse.tail.means import block_sums, means_of

BLOCK = 16
PROMPTS = (1, 3, 8, 10)  # of the held-out ones: a small figure, a large one, two of two figures
SMALL = 1
LAYERS_LOOKED_AT = (1, 5, 9)  # for errors of attention
STEPS_LOOKED_AT = (0.15, 0.65)  # shares of the run at which velocities are compared


@dataclass(frozen=True)
class Share:
    """A control, or a rule with its density given: each row keeps the blocks that come first by some order."""

    kind: str
    density: float
    reads_content = False

    def lists(self, site: Site, q: Tensor | None = None, k: Tensor | None = None) -> BlockLists:
        """As many blocks a row as the density says, its own and the first frame's among them."""
        frame_N, row_N, column_N = places(site.layout)
        blocks = -(-site.layout.tokens // BLOCK)
        at = torch.stack([frame_N, row_N, column_N], -1).float().split(BLOCK)
        middle_R3 = torch.stack([part.mean(0) for part in at])
        time = (middle_R3[:, None, 0] - middle_R3[:, 0]).abs()
        space = (middle_R3[:, None, 1:] - middle_R3[:, 1:]).norm(dim=-1)
        noise = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(0))
        score = {"window": time, "random": noise, "radial": (1 + time).log2() + (1 + space).log2()}[self.kind]
        first = torch.tensor([bool((part == 0).all()) for part in frame_N.split(BLOCK)])
        score = (score + 1e-3 * noise).masked_fill(first, -1.0).masked_fill(torch.eye(blocks, dtype=torch.bool), -2.0)
        kept = score.argsort(1).argsort(1) < round(self.density * blocks)
        return BlockLists.of_mask(kept, BLOCK).to(site.device)


@dataclass(frozen=True)
class Variant:
    """One rung. ``clip`` is whether whole clips are made with it, too."""

    planner: Any
    far_field: FarField = "drop"
    token_order: TokenOrder = "raster"
    dense_steps: float = 0.0
    clip: bool = False

    def context(self, pipe: Any = None, steps: int = 0) -> AttentionContext:
        """What attends by it."""
        schedule = radial.Schedule(dense_layers=1, dense_steps=math.ceil(self.dense_steps * steps))
        columns = BLOCK if self.token_order == "columns" else None
        return Masked([self.planner], schedule, pipe=pipe, far_field=self.far_field, column_size=columns)


def published(skip_width: int) -> StaticPlanner:
    """The published rule; a wider ``skip_width`` thins far frames out and is all that makes it sparser here."""
    return StaticPlanner(radial.RadialPattern(decay=1.0, skip_width=skip_width), BLOCK)


VARIANTS: dict[str, Variant] = {
    "published, first steps dense": Variant(published(16), dense_steps=0.1, clip=True),
    "published": Variant(published(16), clip=True),
    "+ mean": Variant(published(16), "mean", clip=True),
    "+ pyramid": Variant(published(16), "pyramid"),
    "+ columns": Variant(published(16), "drop", "columns"),
    "+ columns + mean": Variant(published(16), "mean", "columns", clip=True),
    "+ columns + pyramid": Variant(published(16), "pyramid", "columns"),
    "thinned": Variant(published(64), clip=True),
    "thinned + mean": Variant(published(64), "mean", clip=True),
    "thinned + columns": Variant(published(64), "drop", "columns"),
    "thinned + columns + mean": Variant(published(64), "mean", "columns", clip=True),
    "thinned + columns + pyramid": Variant(published(64), "pyramid", "columns"),
    "nearest 0.30": Variant(Share("radial", 0.3)),
    "nearest 0.30 + mean": Variant(Share("radial", 0.3), "mean", clip=True),
    "nearest 0.30 + columns": Variant(Share("radial", 0.3), "drop", "columns"),
    "nearest 0.30 + columns + mean": Variant(Share("radial", 0.3), "mean", "columns", clip=True),
    "adaptive 0.30 + mean": Variant(AdaptivePlanner(0.3, BLOCK), "mean"),
    "adaptive 0.30 + columns + mean": Variant(AdaptivePlanner(0.3, BLOCK), "mean", "columns", clip=True),
    "adaptive 0.15 + columns + mean": Variant(AdaptivePlanner(0.15, BLOCK), "mean", "columns", clip=True),
    "nearest 0.15 + columns + mean": Variant(Share("radial", 0.15), "mean", "columns", clip=True),
    "frame window 0.30 + mean": Variant(Share("window", 0.3), "mean"),
    "random 0.30 + mean": Variant(Share("random", 0.3), "mean"),
    "random 0.30 + columns + mean": Variant(Share("random", 0.3), "mean", "columns"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-frames", type=int, default=129)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--levels", nargs="+", default=["step", "clip"], help="step is attention and velocity")
    parser.add_argument("--looks", type=float, nargs="+", default=STEPS_LOOKED_AT, help="shares of the run, for step")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    request = make_request(
        prompt="a", model="tiny", num_frames=options.num_frames, num_inference_steps=options.steps, seed=0,
        device=options.device, dtype="float32", attention="dense",
    ).resolve()  # fmt: skip
    model = load(request)
    check_masks(model)
    members = shapes.held_out(8)
    for prompt in options.prompts:
        ladder = Ladder(request, model, members[prompt][1], prompt, options.out, options.looks)
        if "step" in options.levels:
            ladder.steps(options.variants, whole="clip" in options.levels)
        if "clip" in options.levels:
            ladder.clips([name for name in options.variants if VARIANTS[name].clip])
    show(options.out)


def check_masks(model: LoadedModel) -> None:
    """Make sure that the mask is what the product computes.

    Raises:
        AssertionError: it is something else.
    """
    layout = in_columns(Layout.of(TokenGrid(9, 8, 8)), BLOCK)
    lists = VARIANTS["thinned"].planner.lists(Site(layout, 1, 0, "", model.device))
    q, k, v = torch.randn(3, 1, layout.tokens, 2, 64, generator=torch.Generator().manual_seed(0))
    for far_field in ("drop", "mean", "pyramid"):
        tail = pool_rest(lists, layout, far_field)
        ours, theirs = masked(q, k, v, tail, *mask_of(lists, tail, layout.tokens)), attention(q, k, v, lists, tail=tail)
        assert relative(ours, theirs) < 1e-9


class _EnoughError(Exception):
    """All that is wanted of a clip is there."""


class Ladder:
    """The rungs of one prompt."""

    def __init__(
        self, request: GenerationRequest, model: LoadedModel, text: str, prompt: int, out: Path, looks: Sequence[float]
    ) -> None:
        self.looks = looks
        self.request, self.model, self.text, self.prompt, self.out = request, model, text, prompt, out
        self.steps_count = request.num_inference_steps or 1
        self.dense_file = out / f"dense-{prompt}.pt"

    def dense(self, *, whole: bool = True) -> dict[str, Any]:
        """The dense clip, and what the transformer was given at the steps that are looked at; without the clip where
        the steps are all that is wanted."""
        looked_at = sorted({int(share * self.steps_count) for share in self.looks})
        each = 2 if self.request.is_guided(self.model.spec) else 1
        known = torch.load(self.dense_file, weights_only=False) if self.dense_file.exists() else None
        if known is None or (whole and known["frames"] is None):
            calls: list[dict[str, Any]] = []

            def note(module: Any, args: Any, given: dict[str, Any]) -> None:
                calls.append(given)
                if not whole and len(calls) > looked_at[-1] * each:
                    raise _EnoughError

            handle = self.model.pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
            frames = None
            with contextlib.suppress(_EnoughError):
                frames = self.sample()
            handle.remove()
            names = ("hidden_states", "timestep", "encoder_hidden_states")
            kept = {step: {name: calls[step * each][name] for name in names} for step in looked_at}
            torch.save({"frames": frames, "calls": kept}, self.dense_file)
        return torch.load(self.dense_file, weights_only=False)

    def sample(self) -> np.ndarray:
        """A clip with whatever is installed, ``[T, H, W, 3]`` of bytes."""
        pipe, request = self.model.pipe, self.request
        scheduler = scheduler_for(pipe, request.sampler, request.flow_shift)
        with replaced(pipe, scheduler=scheduler), torch.inference_mode():
            frames = pipe(
                prompt=self.text, negative_prompt="", height=request.height, width=request.width,
                num_frames=request.num_frames, num_inference_steps=self.steps_count,
                guidance_scale=request.guidance_scale, max_sequence_length=self.model.spec.max_sequence_length,
                generator=torch.Generator("cpu").manual_seed(1000 + self.prompt), output_type="np",
            ).frames[0]  # fmt: skip
        return (frames * 255).round().clip(0, 255).astype("uint8")

    def steps(self, names: list[str], *, whole: bool) -> None:
        """Errors of attention and of the velocity at some steps of the dense clip's way."""
        transformer, calls = self.model.pipe.transformer, self.dense(whole=whole)["calls"]
        for step, call in calls.items():
            wanted = [name for name in names if not known(self.out, self.prompt, "velocity", name, step)]
            wanted = [name for name in wanted if not VARIANTS[name].dense_steps]
            if not wanted:
                continue
            seen = _Seen()
            with torch.inference_mode():
                with RadialAttention(seen, [transformer]):
                    real = transformer(**call, return_dict=False)[0]
                for name in wanted:
                    error, density, pooled = seen.error_of(VARIANTS[name])
                    with RadialAttention(VARIANTS[name].context(), [transformer]):
                        ours = transformer(**call, return_dict=False)[0]
                    told = {"density": density, "pooled": pooled, "attention": error, "velocity": relative(ours, real)}
                    keep(self.out, self.prompt, "velocity", name, told, step)

    def clips(self, names: list[str]) -> None:
        """PSNR of whole clips against the dense one."""
        dense = self.dense()["frames"]
        for name in names:
            if known(self.out, self.prompt, "clip", name):
                continue
            context = VARIANTS[name].context(self.model.pipe, self.steps_count)
            with RadialAttention(context, [self.model.pipe.transformer]):
                frames = self.sample()
            error = ((frames.astype(np.float64) - dense) ** 2).mean((1, 2, 3)).clip(1e-9)
            np.savez_compressed(self.out / f"clip-{self.prompt}-{list(VARIANTS).index(name)}.npz", frames)
            keep(self.out, self.prompt, "clip", name, {"psnr": float((10 * np.log10(255**2 / error)).mean())})


class Masked(AttentionContext):
    """The formula with the lists as a mask, which on a CPU takes a third of the time that lists take."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._masks: dict[int, tuple[Any, Tensor, Tensor]] = {}

    def _attend_to(self, entry: int, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        if call.choice == 0 or self.planners[call.choice - 1].reads_content:
            return super()._attend_to(entry, call, q_BSHD, k_BSHD, v_BSHD)
        lists, tail = self._lists(entry, call, q_BSHD, k_BSHD)
        if id(lists) not in self._masks:
            self._masks[id(lists)] = (lists, *mask_of(lists, tail, q_BSHD.shape[1]))
        return masked(q_BSHD, k_BSHD, v_BSHD, tail, *self._masks[id(lists)][1:])


def mask_of(lists: BlockLists, tail: PooledLists | None, tokens: int) -> tuple[Tensor, Tensor]:
    """What is added to the logits of keys and of those means that any row attends to; and which means these are."""
    kept_ST = token_mask(lists.row_offsets, lists.column_indices, tokens, tokens, BLOCK)
    bias = torch.zeros(kept_ST.shape).masked_fill(~kept_ST, float("-inf"))
    if tail is None:
        return bias, torch.zeros(0, dtype=torch.int64)
    used = tail.mask().any(0).nonzero().flatten()
    mask = tail.mask()[:, used].repeat_interleave(BLOCK, 0)[:tokens]
    far = tail.counts[used].log().expand(tokens, -1).masked_fill(~mask, float("-inf"))
    return torch.cat([bias, far], 1), used


def masked(
    q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, tail: PooledLists | None, bias: Tensor, used: Tensor
) -> Tensor:
    """Attention under such a mask."""
    if tail is not None:
        means = [means_of(block_sums(x, BLOCK), tail.counts, tail.spans, tail.order)[:, used] for x in (k_BSHD, v_BSHD)]
        k_BSHD, v_BSHD = (torch.cat([x, mean], 1) for x, mean in zip((k_BSHD, v_BSHD), means, strict=True))
    parts = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
    return F.scaled_dot_product_attention(*parts, attn_mask=bias).transpose(1, 2).contiguous()


class _Seen(AttentionContext):
    """Attends densely, and keeps queries, keys and values of all layers but the first."""

    def __init__(self) -> None:
        super().__init__([published(16)], radial.Schedule(dense_layers=1))
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def attend(self, call: AttentionCall, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        parts = (x.transpose(1, 2) for x in (q_BSHD, k_BSHD, v_BSHD))
        out_BSHD = F.scaled_dot_product_attention(*parts).transpose(1, 2).contiguous()
        self._kept.append((q_BSHD, k_BSHD, v_BSHD, out_BSHD))
        return out_BSHD

    def error_of(self, variant: Variant) -> tuple[float, float, float]:
        """Relative square error of what a rung makes of them; its density, and its means a key."""
        layout = ordered(self.layouts[0], variant.token_order)
        order = sequence(layout)
        errors, shares, pairs = [], [], []
        for index, (*qkv, real) in enumerate(self._kept):
            if index + 1 in LAYERS_LOOKED_AT:
                q, k, v = (x[:, order] for x in qkv)
                lists = variant.planner.lists(Site(layout, index + 1, 0, "", self._device), q, k)
                tail = pool_rest(lists, layout, variant.far_field)
                errors.append(relative(attention(q, k, v, lists, tail=tail), real[:, order]))
                shares.append(lists.share_kept(layout.tokens))
                pairs.append(0.0 if tail is None else tail.pairs)
        return float(np.mean(errors)), float(np.mean(shares)), float(np.mean(pairs))


def ordered(layout: Layout, order: TokenOrder) -> Layout:
    """A layout with its clip's tokens in another order."""
    return layout if order == "raster" else in_columns(layout, BLOCK)


def sequence(layout: Layout) -> Tensor:
    """The tokens of a clip, by their raster numbers, in the order of a layout."""
    return torch.arange(layout.tokens) if layout.tile is None else torch.tensor(token_order(layout.grid, layout.tile))


def places(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Frame, row and column of each token, in the order of a layout."""
    token, grid = sequence(layout), layout.grid
    place = token % grid.tokens_per_frame
    return token // grid.tokens_per_frame, place // grid.width, place % grid.width


def relative(ours: Tensor, real: Tensor) -> float:
    """|ours - real|^2 / |real|^2."""
    return float((ours - real).square().sum() / real.square().sum())


def keep(out: Path, prompt: int, level: str, name: str, told: dict[str, float], step: int | None = None) -> None:
    """Write one number, at once."""
    line = {"prompt": prompt, "level": level, "variant": name, "step": step} | told
    with (out / "numbers.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def numbers(out: Path) -> list[dict[str, Any]]:
    """All that is known so far."""
    file = out / "numbers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def known(out: Path, prompt: int, level: str, name: str, step: int | None = None) -> bool:
    """Whether a number is there already."""
    wanted = (prompt, level, name, step)
    return any((one["prompt"], one["level"], one["variant"], one["step"]) == wanted for one in numbers(out))


def show(out: Path) -> None:
    """The ladder as a table, and a sheet of frames."""
    found = numbers(out)
    columns = ("rung", "density", "means a key", "attention", "velocity", "small figure", "PSNR, dB", "small figure")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|")

    def mean(name: str, level: str, value: str, only: Callable[[int], bool] = lambda prompt: True) -> str:
        some = [one[value] for one in found if one["variant"] == name and one["level"] == level and only(one["prompt"])]
        form = ".2f" if value == "psnr" else ".4f" if value in ("velocity", "attention", "pooled") else ".3f"
        count = f" ({len(some)})" if value == "psnr" else ""
        return f"{np.mean(some):{form}}{count}" if some else ""

    for name in VARIANTS:
        cells = [mean(name, "velocity", value) for value in ("density", "pooled", "attention", "velocity")]
        cells.append(mean(name, "velocity", "velocity", lambda prompt: prompt == SMALL))
        cells += [mean(name, "clip", "psnr"), mean(name, "clip", "psnr", lambda prompt: prompt == SMALL)]
        print(f"| {name} | {' | '.join(cells)} |")
    draw_sheets(out)


def draw_sheets(out: Path) -> None:
    """For each prompt a sheet: eight frames of the dense clip, and of each other that was made."""
    for file in sorted(out.glob("dense-*.pt")):
        prompt = file.stem.split("-")[1]
        rows = {"dense": torch.load(file, weights_only=False)["frames"]}
        if rows["dense"] is None:
            continue
        for index, name in enumerate(VARIANTS):
            clip = out / f"clip-{prompt}-{index}.npz"
            if clip.exists():
                rows[name] = np.load(clip)["arr_0"]
        places_ = np.linspace(0, len(rows["dense"]) - 1, 8).astype(int)
        height, width = rows["dense"].shape[1:3]
        sheet = Image.new("RGB", (8 * width, len(rows) * (height + 16)), "white")
        draw = ImageDraw.Draw(sheet)
        for index, (name, frames) in enumerate(rows.items()):
            draw.text((2, index * (height + 16) + 1), name, fill="black", font=ImageFont.load_default(12))
            for column, place in enumerate(places_):
                sheet.paste(Image.fromarray(frames[place]), (column * width, index * (height + 16) + 16))
        sheet.save(out / f"sheet-{prompt}.png")


if __name__ == "__main__":
    main()
