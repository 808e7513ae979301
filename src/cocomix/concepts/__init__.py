"""Concept model, sparse autoencoder, attribution, labels and the label store."""

from cocomix.concepts.attribution import RULES, SIGNS, ActiveAttribution, attribute, attribute_active
from cocomix.concepts.label_reader import LabelReader
from cocomix.concepts.labeller import ConceptLabeller, Labeller, TopTokens
from cocomix.concepts.labels import ConceptLabels, select_active, select_labels
from cocomix.concepts.live import LiveLabels
from cocomix.concepts.quality import sae_quality, spliced_losses
from cocomix.concepts.sae import SparseLatents, TopKSAE
from cocomix.concepts.sae_training import SaeTraining
from cocomix.concepts.store import LabelStore
from cocomix.concepts.teacher import hidden_at

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
