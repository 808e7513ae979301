"""Look into a student: what it predicts at each token of a text, and what a concept does to what comes next."""

from cocomix.inspect.reading import (
    Odds,
    PredictedConcept,
    Reading,
    TokenReading,
    ablated,
    check_length,
    read_text,
)
from cocomix.inspect.show import print_reading

__all__ = [
    "Odds",
    "PredictedConcept",
    "Reading",
    "TokenReading",
    "ablated",
    "check_length",
    "print_reading",
    "read_text",
]
