"""Compiles the forward kernel ahead of time for GPUs of several generations; run by test_block_sparse.py."""

from __future__ import annotations

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from radial_kernels.block_sparse.forward import _forward_kernel

POINTERS = ("query_ptr", "key_ptr", "value_ptr", "output_ptr")


def compile_forward(capability: int, dtype: str, head_dim: int, *, descriptors: bool, ragged: bool) -> None:
    """Compile one variant down to machine code, or raise."""
    constants = {
        "HEADS": 4,
        "BLOCK": 128,
        "HEAD_DIM": head_dim,
        "HEAD_BLOCK": triton.next_power_of_2(head_dim),
        "RAGGED": ragged,
        "USE_DESCRIPTORS": descriptors,
        "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }
    signature = dict.fromkeys(POINTERS, f"*{dtype}")
    signature |= {"row_offsets_ptr": "*i32", "column_indices_ptr": "*i32", "scale_log2": "fp32"}
    signature |= {name: "i32" for name in _forward_kernel.arg_names if name not in signature | constants}
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in _forward_kernel.arg_names}
    binary = triton.compile(
        ASTSource(_forward_kernel, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 8, "num_stages": 2 if dtype != "fp32" else 1},
    )
    assert binary.asm["cubin"], "no machine code"


if __name__ == "__main__":
    for capability in (80, 90, 100):
        compile_forward(capability, "bf16", 128, descriptors=capability >= 90, ragged=True)
    compile_forward(80, "fp16", 96, descriptors=False, ragged=False)
    compile_forward(90, "fp32", 64, descriptors=True, ragged=True)
    print("compiled for sm80, sm90 and sm100")
