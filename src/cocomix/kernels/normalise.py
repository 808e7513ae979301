"""Per-position normalisation, shared by the autoencoder and the predictors."""

import torch

EPSILON = 1e-5
TINY = 1e-12


def normalise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(norm(x), mean, std) of `x` `[..., d]`: norm(x) = (x - mean) / (std + 1e-5), with the unbiased std over d.

    mean and std are `[..., 1]`.
    """
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    std = centred.std(-1, keepdim=True)
    return centred / (std + EPSILON), mean, std


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """Root of the mean square of `x` `[..., d]` over d, `[..., 1]`, in float32 or better; above 0, so it may divide."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide.square().mean(-1, keepdim=True) + TINY).sqrt()
