"""One way to measure steering: methods write texts, one judge reads them all."""

from cocomix.steering.study.method_result import Part
from cocomix.steering.study.methods import METHODS, Method
from cocomix.steering.study.summary import BOUND, best_dose, bounded_area, summary

__all__ = [
    "BOUND",
    "METHODS",
    "Method",
    "Part",
    "best_dose",
    "bounded_area",
    "summary",
]
