"""How an autoencoder scales hidden states before it reads them, and back afterwards.

Each function maps x `[..., d_model]` to (y, mean, std), all per position, so that the reconstruction of y becomes one
of x as y_hat * std + mean; mean and std are `[..., 1]`. Nothing else is needed downstream: dD/dc is `std` times the
decoder's row under every one of them.
"""

from collections.abc import Callable

import torch

from cocomix.kernels.normalize import normalise

Normalised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def plain(x: torch.Tensor) -> Normalised:
    """x as it is."""
    return x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])


def rescaled(x: torch.Tensor) -> Normalised:
    """x brought to the norm sqrt(d_model): SAELens' `constant_norm_rescale`."""
    std = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    # As SAELens, multiply by the inverse. A vector of zeros has no direction to keep; it stays as it is.
    scale = torch.where(std > 0, 1 / std, 1.0)
    return x * scale, torch.zeros_like(std), std


NORMALISATIONS: dict[str, Callable[[torch.Tensor], Normalised]] = {
    "none": plain,
    "standard": normalise,
    "rescale": rescaled,
}
"""`standard`: per position, with the unbiased std and 1e-5 added to it; OpenAI's, SAELens' `layer_norm`, and ours."""
