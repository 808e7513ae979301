"""Sparse autoencoders, whose latents are the concepts: model, training loss, metrics and file formats."""

from cocomix.sae.formats import FORMATS, LoadedSae, SaeFormat, load_sae, register_format
from cocomix.sae.formats.openai import from_openai, load_openai_file
from cocomix.sae.kinds import SAE_KINDS, register_sae_kind
from cocomix.sae.metrics import sae_quality, spliced_losses
from cocomix.sae.sae import SparseLatents, TopKSAE
from cocomix.sae.training import SaeTraining

__all__ = [
    "FORMATS",
    "SAE_KINDS",
    "LoadedSae",
    "SaeFormat",
    "SaeTraining",
    "SparseLatents",
    "TopKSAE",
    "from_openai",
    "load_openai_file",
    "load_sae",
    "register_format",
    "register_sae_kind",
    "sae_quality",
    "spliced_losses",
]
