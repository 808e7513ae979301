"""Modules that hold plain parameters and say how these begin."""

from torch import nn


class OwnInit(nn.Module):
    """A module with parameters of its own, beside those of linear layers, embeddings and norms below it."""

    def reset(self, std: float) -> None:
        """Initialise the parameters this module itself holds; `std` is the config's `initializer_range`."""
