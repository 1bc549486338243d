"""The portable Triton forward kernel: one program computes one block row of one head.

Per program: load q; loop over the row's key blocks with an online softmax; write o. Blocks are loaded through tensor
descriptors (TMA) where the hardware has them, by pointers elsewhere. Keys beyond the end of a ragged last block are
masked in that block alone: lists are ascending, so it can only be the last of a row.

Shapes: B batch, S query length, T key length, H heads, D head dim.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load_block(
    descriptor, pointer, first, length, stride, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first + BLOCK`` of one head, zero beyond its end."""
    if USE_DESCRIPTORS:
        return descriptor.load([first, 0])
    else:
        rows = first + tl.arange(0, BLOCK)
        columns = tl.arange(0, HEAD_BLOCK)
        inside = (rows < length)[:, None] & (columns < HEAD_DIM)[None, :]
        return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _accumulate(
    query, key, value, accumulated, running_max, running_sum, first, key_length, scale_log2,
    BLOCK: tl.constexpr, MASK_TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax, in base 2."""
    logits = tl.dot(query, key.T, input_precision=PRECISION)
    if MASK_TAIL:
        inside = first + tl.arange(0, BLOCK) < key_length
        logits = tl.where(inside[None, :], logits, float("-inf"))
    new_max = tl.maximum(running_max, tl.max(logits, 1) * scale_log2)
    weights = tl.math.exp2(logits * scale_log2 - new_max[:, None])
    correction = tl.math.exp2(running_max - new_max)
    running_sum = running_sum * correction + tl.sum(weights, 1)
    accumulated = accumulated * correction[:, None]
    accumulated = tl.dot(weights.to(value.dtype), value, accumulated, input_precision=PRECISION)
    return accumulated, new_max, running_sum


@triton.jit
def _forward_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, row_offsets_ptr, column_indices_ptr,
    scale_log2, query_length, key_length,
    query_batch_stride, query_stride, query_head_stride,
    key_batch_stride, key_stride, key_head_stride,
    value_batch_stride, value_stride, value_head_stride,
    output_batch_stride, output_stride, output_head_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    RAGGED: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Rows run fastest, so that the programs alive at one time share one head's keys in the cache.
    row = tl.program_id(0)
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    query_ptr += batch * query_batch_stride + head * query_head_stride
    key_ptr += batch * key_batch_stride + head * key_head_stride
    value_ptr += batch * value_batch_stride + head * value_head_stride
    output_ptr += batch * output_batch_stride + head * output_head_stride
    if USE_DESCRIPTORS:
        key_descriptor = tl.make_tensor_descriptor(
            key_ptr, shape=[key_length, HEAD_DIM], strides=[key_stride, 1], block_shape=[BLOCK, HEAD_BLOCK]
        )
        value_descriptor = tl.make_tensor_descriptor(
            value_ptr, shape=[key_length, HEAD_DIM], strides=[value_stride, 1], block_shape=[BLOCK, HEAD_BLOCK]
        )
    else:
        key_descriptor = None
        value_descriptor = None

    query = _load_block(None, query_ptr, row * BLOCK, query_length, query_stride, BLOCK, HEAD_DIM, HEAD_BLOCK, False)
    accumulated = tl.zeros([BLOCK, HEAD_BLOCK], tl.float32)
    running_max = tl.full([BLOCK], float("-inf"), tl.float32)
    running_sum = tl.zeros([BLOCK], tl.float32)
    start = tl.load(row_offsets_ptr + row)
    stop = tl.load(row_offsets_ptr + row + 1)
    whole_stop = stop - 1 if RAGGED else stop

    for position in tl.range(start, whole_stop):
        first = tl.load(column_indices_ptr + position) * BLOCK
        key = _load_block(
            key_descriptor, key_ptr, first, key_length, key_stride, BLOCK, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        value = _load_block(
            value_descriptor, value_ptr, first, key_length, value_stride, BLOCK, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        accumulated, running_max, running_sum = _accumulate(
            query, key, value, accumulated, running_max, running_sum, first, key_length, scale_log2,
            BLOCK, False, PRECISION,
        )  # fmt: skip
    if RAGGED and start < stop:
        first = tl.load(column_indices_ptr + stop - 1) * BLOCK
        key = _load_block(
            key_descriptor, key_ptr, first, key_length, key_stride, BLOCK, HEAD_DIM, HEAD_BLOCK, USE_DESCRIPTORS
        )
        value = _load_block(
            value_descriptor, value_ptr, first, key_length, value_stride, BLOCK, HEAD_DIM, HEAD_BLOCK,
            USE_DESCRIPTORS,
        )  # fmt: skip
        accumulated, running_max, running_sum = _accumulate(
            query, key, value, accumulated, running_max, running_sum, first, key_length, scale_log2,
            BLOCK, True, PRECISION,
        )  # fmt: skip

    # A row without keys has a zero sum and gives zeros.
    output = accumulated / tl.where(running_sum > 0, running_sum, 1.0)[:, None]
    rows = row * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, HEAD_BLOCK)
    inside = (rows < query_length)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(
        output_ptr + rows.to(tl.int64)[:, None] * output_stride + columns[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=inside,
    )


def attention(
    q_BSHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    row_offsets: Tensor,
    column_indices: Tensor,
    block_size: int,
    scale: float,
    *,
    use_descriptors: bool | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> Tensor:
    """Launch the kernel. The keyword arguments exist for measuring; left out, they are chosen from the inputs."""
    batch, query_length, heads, head_dim = q_BSHD.shape
    output = torch.empty((batch, query_length, heads, head_dim), dtype=q_BSHD.dtype, device=q_BSHD.device)
    head_block = max(16, triton.next_power_of_2(head_dim))
    if use_descriptors is None:
        use_descriptors = descriptors_fit(k_BTHD) and descriptors_fit(v_BTHD)
    # Triton launches on the current device, which need not be q's.
    with torch.cuda.device(q_BSHD.device) if q_BSHD.is_cuda else contextlib.nullcontext():
        if use_descriptors:
            triton.set_allocator(_allocate)
        _forward_kernel[(len(row_offsets) - 1, batch * heads)](
            q_BSHD, k_BTHD, v_BTHD, output, row_offsets, column_indices,
            scale * 1.4426950408889634, query_length, k_BTHD.shape[1],
            *q_BSHD.stride()[:3], *k_BTHD.stride()[:3], *v_BTHD.stride()[:3], *output.stride()[:3],
            HEADS=heads,
            BLOCK=block_size,
            HEAD_DIM=head_dim,
            HEAD_BLOCK=head_block,
            RAGGED=k_BTHD.shape[1] % block_size != 0,
            USE_DESCRIPTORS=use_descriptors,
            PRECISION="ieee" if q_BSHD.dtype == torch.float32 else "tf32",
            num_warps=num_warps or (8 if block_size >= 128 else 4),
            num_stages=num_stages or _stages(q_BSHD, block_size * head_block),
        )  # fmt: skip
    return output


def _stages(x: Tensor, block_elements: int) -> int:
    """As many key and value blocks in flight as shared memory holds, three at most."""
    if not x.is_cuda:
        return 2
    memory = triton.runtime.driver.active.utils.get_device_properties(x.device.index)["max_shared_mem"]
    return max(1, min(3, memory // (2 * block_elements * x.element_size())))


def descriptors_fit(x_BSHD: Tensor) -> bool:
    """Whether a tensor can be read through the hardware's tensor descriptors (compute capability 9 and later)."""
    size = x_BSHD.element_size()
    aligned = x_BSHD.data_ptr() % 16 == 0 and all(stride * size % 16 == 0 for stride in x_BSHD.stride()[:3])
    return x_BSHD.is_cuda and torch.cuda.get_device_capability(x_BSHD.device)[0] >= 9 and aligned


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Workspace for descriptors that are made on the device."""
    return torch.empty(size, dtype=torch.int8, device="cuda")
