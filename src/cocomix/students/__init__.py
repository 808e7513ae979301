"""Students and teachers built from a shape, and what each student is trained on (`VARIANTS`)."""

from cocomix.students.build import Sizes, build_mixed, build_plain, match_width, parameter_count, special_ids
from cocomix.students.load import load_causal_lm, model_config
from cocomix.students.variants import VARIANTS, Variant, build_student

__all__ = [
    "VARIANTS",
    "Sizes",
    "Variant",
    "build_mixed",
    "build_plain",
    "build_student",
    "load_causal_lm",
    "match_width",
    "model_config",
    "parameter_count",
    "special_ids",
]
