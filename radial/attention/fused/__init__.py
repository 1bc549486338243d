"""Blocks of transformers by fused kernels. Imports the kernels."""
