"""Block-sparse attention kernels: tensors in, tensors out. Knows no video."""
