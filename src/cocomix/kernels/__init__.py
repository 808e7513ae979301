"""Fast implementations of the method's inner loops; the tests compare each with a slow, obvious version."""

from cocomix.kernels.divergence import linear_divergence
from cocomix.kernels.linear_cross_entropy import LinearLosses, linear_losses
from cocomix.kernels.matmul import linear
from cocomix.kernels.plain_linear import apply_linear, is_wrapped, plain_linear, some_outputs
from cocomix.kernels.sparse import largest, row_products, weighted_rows

__all__ = [
    "LinearLosses",
    "apply_linear",
    "is_wrapped",
    "largest",
    "linear",
    "linear_divergence",
    "linear_losses",
    "plain_linear",
    "row_products",
    "some_outputs",
    "weighted_rows",
]
