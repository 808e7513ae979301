"""Fast implementations of the method's inner loops; the tests compare each with a slow, obvious version."""

from cocomix.kernels.linear_cross_entropy import LinearLosses, is_wrapped, linear_losses, plain_linear
from cocomix.kernels.matmul import Linear, linear
from cocomix.kernels.sparse import largest, row_products, weighted_rows

__all__ = [
    "Linear",
    "LinearLosses",
    "is_wrapped",
    "largest",
    "linear",
    "linear_losses",
    "plain_linear",
    "row_products",
    "weighted_rows",
]
