"""The one way to measure steering: methods generate texts, one judge reads them all."""

from cocomix.steering.study.concepts import (
    Concept,
    ConceptActivity,
    choose_concepts,
    choose_named_concepts,
    concept_activity,
)
from cocomix.steering.study.context import StudyContext
from cocomix.steering.study.judge import Judge, TextMetrics
from cocomix.steering.study.method_result import MethodResult
from cocomix.steering.study.methods import METHODS, Method, register_method
from cocomix.steering.study.summary import BOUND, best_dose, bounded_area, summary

__all__ = [
    "BOUND",
    "METHODS",
    "Concept",
    "ConceptActivity",
    "Judge",
    "Method",
    "MethodResult",
    "StudyContext",
    "TextMetrics",
    "best_dose",
    "bounded_area",
    "choose_concepts",
    "choose_named_concepts",
    "concept_activity",
    "register_method",
    "summary",
]
