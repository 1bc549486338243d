"""Attention over a list of key blocks for every block of queries."""

from radial_kernels.block_sparse.api import BACKENDS, BLOCK_SIZES, attention, check_lists, choose_backend

__all__ = ["BACKENDS", "BLOCK_SIZES", "attention", "check_lists", "choose_backend"]
