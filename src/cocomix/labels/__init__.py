"""Which concepts matter at a position: attribution, and the store of labels made with it."""

from cocomix.labels.attribution import RULES, SIGNS, ActiveAttribution, attribute, attribute_active
from cocomix.labels.label_reader import LabelReader
from cocomix.labels.labeler import ConceptLabeller, Labeller, TopTokens
from cocomix.labels.labels import ConceptLabels, select_active, select_labels
from cocomix.labels.live import LiveLabels
from cocomix.labels.store import LabelStore

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
