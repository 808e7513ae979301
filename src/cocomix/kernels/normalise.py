"""Per-position normalisation, shared by the autoencoder, the concept head and the hidden-state regression."""

import torch

EPSILON = 1e-5


def normalise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(norm(x), mean, std) of `x` `[..., d]`: norm(x) = (x - mean) / (std + 1e-5), with the unbiased std over d.

    mean and std are `[..., 1]`.
    """
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    std = centred.std(-1, keepdim=True)
    return centred / (std + EPSILON), mean, std
