"""Which concepts matter at a position: attribution, and the store of labels made with it."""

from cocomix.labels.attribution import (
    RULES,
    SIGNS,
    ActiveAttribution,
    ConceptLabels,
    attribute,
    attribute_active,
    select_active,
    select_labels,
)
from cocomix.labels.labeller import ConceptLabeller, Labeller, LiveLabels, TopTokens
from cocomix.labels.store import LabelReader, LabelStore

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
    "TopTokens",
    "attribute",
    "attribute_active",
    "select_active",
    "select_labels",
]
