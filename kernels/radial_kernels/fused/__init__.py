"""What a transformer block computes between its matrix products, in one pass over memory each. Forward only.

residual_norm     x + y * gate, its layer norm, and that scaled and shifted
norm_rotary       root-mean-square norm of queries or keys, rotated by their positions
gelu_beside       columns and the GELU of others, side by side
EightBitLinear    a linear layer whose product is of e4m3 numbers
EightBitWeights   a linear layer that keeps its weight in e4m3
reference         the formulas, in plain torch; what runs where a gradient is wanted, or no Triton
"""

from radial_kernels.fused.eight_bit_linear import EightBitLinear, EightBitWeights, gelu_beside, refuse_eight_bit
from radial_kernels.fused.norms import gated_residual, residual_norm
from radial_kernels.fused.rotary import norm_rotary

__all__ = [
    "EightBitLinear",
    "EightBitWeights",
    "gated_residual",
    "gelu_beside",
    "norm_rotary",
    "refuse_eight_bit",
    "residual_norm",
]
