"""Students and teachers built from a shape: plain Transformers models, and CoCoMix models."""

from cocomix.students.build import build_cocomix, build_plain, match_width, parameter_count

__all__ = ["build_cocomix", "build_plain", "match_width", "parameter_count"]
