"""Compiles every kernel ahead of time for GPUs of several generations, without one; run by test_block_sparse.py."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from radial_kernels.block_sparse.hopper import backward as hopper_backward
from radial_kernels.block_sparse.hopper import eight_bit as hopper_eight_bit
from radial_kernels.block_sparse.hopper import forward as hopper_forward
from radial_kernels.block_sparse.hopper.descriptors import tile_layout
from radial_kernels.block_sparse.portable import backward, eight_bit, forward, quantise
from radial_kernels.block_sparse.portable.configurations import Tiles, tiles_for
from radial_kernels.block_sparse.tail import backward as tail_backward
from radial_kernels.block_sparse.tail import forward as tail_forward
from radial_kernels.block_sparse.tail import pooling
from radial_kernels.block_sparse.tail.lists import WORD
from radial_kernels.fused import kernels

BYTES = {"i8": 1, "fp8e4nv": 1, "fp16": 2, "bf16": 2, "fp32": 4}
INDICES = {
    "row_offsets_ptr", "column_indices_ptr", "column_offsets_ptr", "row_indices_ptr", "column_order_ptr",
    "word_indices_ptr", "key_ends_ptr",
}  # fmt: skip
SINGLES = {"lse_ptr", "grad_lse_ptr", "terms_ptr", "mean_ptr", "sums_ptr", "exponent_ptr"}
FLOATS = {"scale", "scale_log2", "eps"}


def compile_kernel(
    kernel: Any,
    capability: int,
    dtype: str,
    constants: dict[str, Any],
    others: dict[str, str] | None = None,
    **options: int,
) -> None:
    """Compile one variant of a kernel down to machine code, or raise.

    Descriptors are given by their tiles; ``others`` names the tensors that are not of ``dtype``.
    """
    others = (others or {}) | {"terms_descriptor": "fp32"}
    tiles = {name: value for name, value in constants.items() if isinstance(value, list)}
    constants = {name: value for name, value in constants.items() if name not in tiles}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in tiles:
            element = others.get(name, dtype)
            signature[name] = f"tensordesc<{element}{tiles[name]},{tile_layout(tiles[name], BYTES[element])!r}>"
        elif name in INDICES:
            signature[name] = "*i32"
        elif name in SINGLES or name.endswith(("scale_ptr", "shift_ptr")):
            signature[name] = "*fp32"
        elif name.endswith("_ptr"):
            signature[name] = f"*{others.get(name, dtype)}"
        else:
            signature[name] = "fp32" if name in FLOATS else "i32"
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    # As at a launch: pointers and strides are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name][0] == "*" or ("stride" in name and signature[name] == "i32")
    }
    binary = triton.compile(
        source(kernel, signature, constants, aligned), target=GPUTarget("cuda", capability, 32), options=options
    )
    assert binary.asm["cubin"], "no machine code"
    limit = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}[capability]
    assert binary.metadata.shared <= limit, f"{kernel.fn.__name__}: {binary.metadata.shared} bytes of shared memory"


def portable(capability: int, dtype: str, head_dim: int, *, ragged: bool) -> None:
    """The portable kernels with the tiles that the table gives them."""
    shape = {
        "HEADS": 4,
        "BLOCK": 128,
        "HEAD_DIM": head_dim,
        "HEAD_BLOCK": triton.next_power_of_2(head_dim),
        "USE_DESCRIPTORS": capability >= 90,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }

    def sizes(tiles: Tiles) -> dict[str, int]:
        return {"QUERIES": tiles.queries, "KEYS": tiles.keys}

    def options(tiles: Tiles) -> dict[str, int]:
        return {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}

    tiles = tiles_for("forward", (capability // 10, capability % 10), BYTES[dtype], head_dim, 128)
    constants = shape | sizes(tiles) | {"RAGGED": ragged}
    joined = {} if ragged else {"key_ends_ptr": None}
    compile_kernel(forward._forward_kernel, capability, dtype, constants | joined, **options(tiles))
    tiles = tiles_for("backward", (capability // 10, capability % 10), BYTES[dtype], head_dim, 128)
    compile_kernel(backward._key_gradients_kernel, capability, dtype, shape | sizes(tiles), **options(tiles))
    swapped = {"QUERIES": tiles.keys, "KEYS": tiles.queries}
    compile_kernel(backward._query_gradient_kernel, capability, dtype, shape | swapped, **options(tiles))


def far_field(capability: int, dtype: str, head_dim: int) -> None:
    """The kernels of the far field with the tiles that the table gives them."""
    shape = {"HEADS": 4, "BLOCK": 128, "HEAD_DIM": head_dim, "HEAD_BLOCK": triton.next_power_of_2(head_dim)}
    sums = dict.fromkeys(("key_sums_ptr", "value_sums_ptr", "key_shares_ptr", "value_shares_ptr"), "fp32")
    for kernel in (pooling._sums_kernel, pooling._shares_kernel):
        compile_kernel(kernel, capability, dtype, shape | {"TOKENS": 32}, sums, num_warps=4)
    shape |= {
        "WORD_KEYS": WORD,
        "USE_DESCRIPTORS": capability >= 90,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }
    types = {"bits_ptr": "i64", "bias_ptr": "fp32"}
    architecture = (capability // 10, capability % 10)
    for kind, kernel in (
        ("tail", tail_forward._tail_kernel),
        ("tail backward", tail_backward._mean_gradients_kernel),
        ("tail backward", tail_backward._query_gradient_kernel),
    ):
        tiles = tiles_for(kind, architecture, BYTES[dtype], head_dim, 128)
        queries, keys = tiles.queries, tiles.keys
        if kernel is tail_backward._query_gradient_kernel:
            queries, keys = keys, queries
        own = types
        if kernel is tail_backward._mean_gradients_kernel:
            own = types | {"grad_key_ptr": "fp32", "grad_value_ptr": "fp32"}
        compile_kernel(
            kernel, capability, dtype, shape | {"QUERIES": queries, "KEYS": keys}, own,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip


def hopper(dtype: str, head_dim: int) -> None:
    """The kernels for compute capability 9.0."""
    half, whole = [1, 64, 1, head_dim], [1, 128, 1, head_dim]
    shape = {"HEADS": 4, "BLOCK": 128, "HEAD_DIM": head_dim}
    group = {"num_warps": 4, "maxnreg": 168}
    queries = {f"{name}_descriptor": half for name in ("query", "output", "grad", "grad_query")}
    keys = {"key_descriptor": whole, "value_descriptor": whole}
    for kernel in (hopper_forward._forward_kernel, hopper_backward._query_gradient_kernel):
        used = {name: tile for name, tile in (queries | keys).items() if name in kernel.arg_names}
        stages = 3 if kernel is hopper_forward._forward_kernel else 2
        compile_kernel(kernel, 90, dtype, shape | used | {"STAGES": stages}, **group)
    used = {name: tile for name, tile in (queries | keys).items() if name in hopper_forward._forward_kernel.arg_names}
    alone = {"STAGES": 3, "key_ends_ptr": None}
    compile_kernel(hopper_forward._forward_kernel, 90, dtype, shape | used | alone, **group)
    names = ("query", "key", "value", "grad", "grad_key", "grad_value")
    used = {f"{name}_descriptor": half for name in names} | {"terms_descriptor": [64]}
    constants = shape | used | {"QUERIES": 64, "STAGES": 3}
    compile_kernel(hopper_backward._key_gradients_kernel, 90, dtype, constants, **group)


def eight_bits(capability: int, head_dim: int) -> None:
    """Quantisation, and the portable 8-bit kernel as it runs on an architecture."""
    shape = {"HEADS": 4, "BLOCK": 128, "HEAD_DIM": head_dim, "HEAD_BLOCK": triton.next_power_of_2(head_dim)}
    channels = {name: value for name, value in shape.items() if name != "BLOCK"} | {"SAMPLE": 64}
    compile_kernel(quantise._sums_kernel, capability, "bf16", channels, num_warps=4)
    compile_kernel(quantise._blocks_kernel, capability, "bf16", shape, {"whole_ptr": "i8"}, num_warps=8)
    newer = capability >= 89
    if newer:
        order = shape | {"INTERLEAVED": True}
        compile_kernel(quantise._values_kernel, capability, "bf16", order, {"out_ptr": "fp8e4nv"}, num_warps=8)
    types = {"query_ptr": "i8", "key_ptr": "i8"} | ({"value_ptr": "fp8e4nv"} if newer else {})
    constants = shape | {"QUERIES": 64, "KEYS": 64, "EIGHT_BIT_VALUES": newer}
    if not newer:
        constants |= {"value_shift_ptr": None, "value_scale_ptr": None}
    compile_kernel(eight_bit._eight_bit_kernel, capability, "bf16", constants, types, num_warps=4, num_stages=2)


def hopper_eight_bits(head_dim: int) -> None:
    tiles = {
        "query_descriptor": [1, 64, 1, head_dim],
        "key_descriptor": [1, 128, 1, head_dim],
        "value_descriptor": [1, 1, head_dim, 128],
        "output_descriptor": [1, 64, 1, head_dim],
    }
    types = {"query_descriptor": "i8", "key_descriptor": "i8", "value_descriptor": "fp8e4nv"}
    constants = {"HEADS": 4, "BLOCK": 128, "HEAD_DIM": head_dim, "STAGES": 3} | tiles
    compile_kernel(hopper_eight_bit._eight_bit_kernel, 90, "bf16", constants, types, num_warps=4, maxnreg=168)


def fused(capability: int, dtype: str, channels: int) -> None:
    """The kernels between a block's products, with all that they can be given and with the least."""
    block = {"CHANNELS": channels, "BLOCK": triton.next_power_of_2(channels)}
    tables = dict.fromkeys(("gate_ptr", "weight_ptr", "bias_ptr", "scale_ptr", "shift_ptr"), "fp32")
    nothing = dict.fromkeys(tables)
    for left_out in ({}, nothing, {"y_ptr": None, "gate_ptr": None, "sum_ptr": None},
                     {name: None for name in nothing if name != "gate_ptr"} | {"normed_ptr": None}):  # fmt: skip
        types = {name: kind for name, kind in tables.items() if name not in left_out}
        compile_kernel(kernels.residual_norm_kernel, capability, dtype, block | left_out, types, num_warps=8)
    angles = {"cos_ptr": "fp32", "sin_ptr": "fp32"}
    for a_head in (False, True):
        rotated = block | {"HEAD_DIM": 128, "A_HEAD": a_head}
        compile_kernel(kernels.norm_rotary_kernel, capability, dtype, rotated, angles, num_warps=8)
    rows = {"FEATURES": channels, "FIRST": 1024, "GELU": True, "BLOCK": block["BLOCK"]}
    compile_kernel(kernels.rows_kernel, capability, dtype, rows | {"scale_ptr": None}, num_warps=8)
    if capability >= 89:
        for changes in ({}, {"first_ptr": None, "FIRST": 0}, {"first_ptr": None, "FIRST": 0, "GELU": False}):
            compile_kernel(kernels.rows_kernel, capability, dtype, rows | changes,
                           {"out_ptr": "fp8e4nv", "scale_ptr": "fp32"}, num_warps=8)  # fmt: skip


if __name__ == "__main__":
    for capability in (80, 89, 90, 100, 120):
        fused(capability, "bf16", 5120)
    fused(90, "fp32", 1536)
    for capability in (80, 90, 100):
        portable(capability, "bf16", 128, ragged=True)
    portable(89, "fp16", 96, ragged=False)
    portable(90, "bf16", 64, ragged=False)
    portable(120, "bf16", 256, ragged=False)
    portable(90, "fp32", 256, ragged=True)
    far_field(80, "bf16", 128)
    far_field(90, "bf16", 128)
    far_field(120, "fp16", 256)
    for capability in (80, 89, 90, 100):
        eight_bits(capability, 128)
    hopper_eight_bits(128)
    hopper_eight_bits(64)
    hopper("bf16", 128)
    hopper("fp16", 64)
    print("compiled for sm80, sm89, sm90, sm100 and sm120")
