"""Which backend computes a call, and why another cannot."""

from __future__ import annotations

import importlib.util
import logging

import torch
from torch import Tensor

from radial_kernels.triton_runtime import HAS_TRITON, interpreted

BACKENDS = ("auto", "reference", "gather", "triton", "hopper", "flash")
HOPPER_HEAD_DIMS = (64, 128)

_log = logging.getLogger(__name__)


def choose_backend(q: Tensor, backend: str = "auto", *, block_size: int = 128, others: tuple[Tensor, ...] = ()) -> str:
    """The backend that will run for these inputs, or why the named one cannot."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; the backends are {', '.join(BACKENDS)}")
    if backend == "auto":
        if _hopper_refusal(q, block_size, others) is None:
            chosen = "hopper"
        else:
            chosen = "triton" if q.is_cuda and _triton_refusal(q) is None else "gather"
        _log_choice(chosen, q, block_size)
        return chosen
    refusal = None
    if backend == "hopper":
        refusal = _hopper_refusal(q, block_size, others)
    elif backend == "flash":
        refusal = _flash_refusal(q, block_size, others)
    elif backend == "triton":
        refusal = _triton_refusal(q)
    if refusal is not None:
        raise ValueError(f"backend {backend} {refusal}; use auto, or one of {', '.join(_alternatives(q, backend))}")
    return backend


def explain_backend(q: Tensor, *, block_size: int = 128) -> tuple[str, str]:
    """The backend that ``auto`` takes for such queries, and why none of those that would be faster."""
    chosen = choose_backend(q, block_size=block_size)
    refusals = {"hopper": _hopper_refusal(q, block_size, ()), "triton": _triton_refusal(q)}
    faster = list(refusals)[: list(refusals).index(chosen)] if chosen in refusals else list(refusals)
    return chosen, "; ".join(f"{name} {refusals[name]}" for name in faster)


def _triton_refusal(q: Tensor) -> str | None:
    """Why the portable kernels cannot run, if they cannot."""
    if not HAS_TRITON:
        return "needs the triton package"
    if not (q.is_cuda or interpreted()):
        return f"needs a GPU, and q is on {q.device}"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"computes in float16, bfloat16 and float32, not {q.dtype}"
    return None


def _hopper_refusal(q: Tensor, block_size: int, others: tuple[Tensor, ...]) -> str | None:
    """Why the Hopper kernels cannot run, if they cannot."""
    if not HAS_TRITON:
        return "needs the triton package"
    return _sm90_refusal(q, block_size, others)


def _flash_refusal(q: Tensor, block_size: int, others: tuple[Tensor, ...]) -> str | None:
    """Why FlashAttention-4's kernels cannot run, if they cannot."""
    if not flash_attention_installed():
        return "needs the flash-attn-4 package (radial[flash])"
    return _sm90_refusal(q, block_size, others)


def _sm90_refusal(q: Tensor, block_size: int, others: tuple[Tensor, ...]) -> str | None:
    """What every backend of the Hopper architecture asks of its inputs."""
    if not q.is_cuda:
        return f"needs a GPU, and q is on {q.device}"
    capability = torch.cuda.get_device_capability(q.device)
    if capability != (9, 0):
        return f"needs compute capability 9.0 (H100, H200), and this GPU has {capability[0]}.{capability[1]}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"computes in float16 and bfloat16, not {q.dtype}"
    if q.ndim == 4 and q.shape[-1] not in HOPPER_HEAD_DIMS:
        return f"has kernels for head dims 64 and 128, not {q.shape[-1]}"
    if block_size != 128:
        return f"has kernels for blocks of 128 tokens, not {block_size}"
    for x in (q, *others):
        if not all(stride > 0 and stride * x.element_size() % 16 == 0 for stride in x.stride()[:-1]):
            return f"needs rows that start on 16 bytes and none expanded, and a tensor has strides {tuple(x.stride())}"
        if x.data_ptr() % 16:
            return "needs tensors that start on 16 bytes, and one does not"
    return None


def _alternatives(q: Tensor, refused: str) -> list[str]:
    triton = ["triton"] if refused != "triton" and _triton_refusal(q) is None else []
    return [*triton, "gather", "reference"]


def flash_attention_installed() -> bool:
    """Whether flash-attn-4 is here; earlier versions have the same package name without its kernels."""
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False


_logged: set[tuple[object, ...]] = set()


def _log_choice(chosen: str, q: Tensor, block_size: int) -> None:
    """Say once for each kind of input what ``auto`` took."""
    key = (chosen, q.device, q.dtype, q.shape[-1] if q.ndim == 4 else 0, block_size)
    if key not in _logged:
        _logged.add(key)
        _log.info("attention backend auto took %s for %s on %s, blocks of %d", chosen, q.dtype, q.device, block_size)
