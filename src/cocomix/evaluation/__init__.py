"""Measuring models: perplexity, concept recall, whether the channel matters, and the tasks of lm-evaluation-harness."""

from cocomix.evaluation.certificate import channel_certificate
from cocomix.evaluation.perplexity import perplexity
from cocomix.evaluation.recall import concept_recall

__all__ = [
    "channel_certificate",
    "concept_recall",
    "perplexity",
]
