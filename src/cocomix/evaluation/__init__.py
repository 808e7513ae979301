"""Measuring models: perplexity, concept recall, and the tasks of lm-evaluation-harness."""

from cocomix.evaluation.perplexity import perplexity
from cocomix.evaluation.recall import concept_recall

__all__ = [
    "concept_recall",
    "perplexity",
]
