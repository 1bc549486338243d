"""The kernels in Triton, for any GPU and the interpreter."""
