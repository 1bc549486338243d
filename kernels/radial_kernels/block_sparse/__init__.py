"""Attention over a list of key blocks for every block of queries."""

from radial_kernels.block_sparse.api import BLOCK_SIZES, attention
from radial_kernels.block_sparse.backends import BACKENDS, choose_backend, explain_backend
from radial_kernels.block_sparse.lists import BlockLists, join_lists
from radial_kernels.block_sparse.merge import merge
from radial_kernels.block_sparse.select import select_blocks
from radial_kernels.block_sparse.tail.lists import PooledLists

__all__ = [
    "BACKENDS",
    "BLOCK_SIZES",
    "BlockLists",
    "PooledLists",
    "attention",
    "choose_backend",
    "explain_backend",
    "join_lists",
    "merge",
    "select_blocks",
]
