"""The sparse autoencoder that defines the concepts: model, training, quality, file formats."""

from cocomix.sae.metrics import sae_quality, spliced_losses
from cocomix.sae.sae import SparseLatents, TopKSAE
from cocomix.sae.training import SaeTraining

__all__ = [
    "SaeTraining",
    "SparseLatents",
    "TopKSAE",
    "sae_quality",
    "spliced_losses",
]
