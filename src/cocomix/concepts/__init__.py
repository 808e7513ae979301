"""Deprecated: these names are in `cocomix.sae`, `cocomix.labels` and `cocomix.model`; kept for one version."""

import warnings

from cocomix.labels import (
    RULES,
    SIGNS,
    ActiveAttribution,
    ConceptLabeller,
    ConceptLabels,
    Labeller,
    LabelReader,
    LabelStore,
    LiveLabels,
    TopTokens,
    attribute,
    attribute_active,
    select_active,
    select_labels,
)
from cocomix.model import hidden_at
from cocomix.sae import SaeTraining, SparseLatents, TopKSAE, sae_quality, spliced_losses

__all__ = [
    "RULES",
    "SIGNS",
    "ActiveAttribution",
    "ConceptLabeller",
    "ConceptLabels",
    "LabelReader",
    "LabelStore",
    "Labeller",
    "LiveLabels",
    "SaeTraining",
    "SparseLatents",
    "TopKSAE",
    "TopTokens",
    "attribute",
    "attribute_active",
    "hidden_at",
    "sae_quality",
    "select_active",
    "select_labels",
    "spliced_losses",
]

warnings.warn(
    "cocomix.concepts is deprecated; import autoencoders from cocomix.sae, attribution and labels from cocomix.labels,"
    " and hidden_at from cocomix.model",
    FutureWarning,
    stacklevel=2,
)
