"""Fast paths shared by the student, the autoencoder and the labels; each has a plain twin in the tests."""

from cocomix.kernels.few_rows import Linear, linear
from cocomix.kernels.losses import LinearLosses, is_wrapped, linear_losses, plain_linear
from cocomix.kernels.rows import row_products, weighted_rows
from cocomix.kernels.topk import largest

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
