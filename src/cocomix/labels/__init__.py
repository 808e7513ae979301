"""Concept labels: attribution scores, the labels selected from them, and the store that holds them."""

from cocomix.labels.attribution import (
    RULES,
    SIGNS,
    ActiveAttribution,
    ConceptLabels,
    Rule,
    attribute,
    attribute_active,
    labelling_flops,
    register_rule,
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
    "Rule",
    "TopTokens",
    "attribute",
    "attribute_active",
    "labelling_flops",
    "register_rule",
    "select_active",
    "select_labels",
]
