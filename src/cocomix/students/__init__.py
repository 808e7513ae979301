"""Students and teachers built from a shape: plain Transformers models, and CoCoMix models."""

from cocomix.students.build import build_cocomix, build_plain, match_width, parameter_count, special_ids
from cocomix.students.load import load_causal_lm

__all__ = ["build_cocomix", "build_plain", "load_causal_lm", "match_width", "parameter_count", "special_ids"]
