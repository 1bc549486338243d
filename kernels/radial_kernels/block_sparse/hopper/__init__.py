"""Kernels for compute capability 9.0, written in Gluon: warps with roles, asynchronous products and copies."""
