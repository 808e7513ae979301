"""How well steering works, measured: does the concept come, what does it cost, and how far does it leak."""

from cocomix.steer_eval.area import BOUND, best_dose, bounded_area
from cocomix.steer_eval.methods import METHODS, Method
from cocomix.steer_eval.part import Part
from cocomix.steer_eval.summary import summary

__all__ = ["BOUND", "METHODS", "Method", "Part", "best_dose", "bounded_area", "summary"]
