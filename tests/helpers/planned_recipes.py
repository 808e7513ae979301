"""A tiny experiment and its plan."""

from pathlib import Path
from typing import Any

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan import plan
from cocomix.utils.settings import merge, validate

GIB = 2**30
SHAPE = {"backbone": "gpt2", "width": 32, "layers": 3, "heads": 2}
TINY: dict[str, Any] = {
    "title": "tiny",
    "seeds": [0, 1],
    "base": {
        "seq_len": 16,
        "corpus": {"val_fraction": 0.1, "test_fraction": 0.1},
        "tokens": {"vocab_size": 300},
        "teacher": {
            "model": {"width": 48, "layers": 4, "heads": 2},
            "train": {"batch_size": 8, "steps": 20, "precision": "fp32"},
        },
        "sae": {"layer": 1, "n_latents": 64, "k": 8, "train": {"batch_size": 8, "steps": 10, "precision": "fp32"}},
        "labels": {
            "exact": {"rule": "exact", "signs": ["signed", "helpful"], "k": 3},
            "activation": {"rule": "activation", "signs": ["signed"], "k": 3},
            "unused": {"rule": "reference", "k": 3},
        },
        "students_train": {"batch_size": 8, "steps": 100, "precision": "fp32"},
    },
    "variants": {
        "ntp": {"objective": "ntp", "model": SHAPE},
        "ntp_2x": {"objective": "ntp", "model": SHAPE, "length": 2},
        "ntp_wide": {"objective": "ntp", "model": SHAPE, "match_parameters": "cocomix"},
        "kd": {"objective": "kd", "model": SHAPE},
        "kd_stored": {"objective": "kd", "model": SHAPE, "teacher_top_k": 5},
        "hidden": {"objective": "hidden", "model": SHAPE, "mix": {"concept_layer": 1}},
        "cocomix": {"objective": "cocomix", "model": SHAPE, "labels": "exact", "concept": {"concept_layer": 1}},
        "cocomix_act": {
            "objective": "cocomix",
            "model": SHAPE,
            "labels": "activation",
            "concept": {"concept_layer": 1},
        },
        "bootstrap": {
            "objective": "bootstrap",
            "model": SHAPE,
            "concept": {"concept_layer": 1},
            "n_latents": 64,
            "k": 8,
        },
    },
    "settings": {"one": {"title": "one"}},
}


def experiment(**changes: Any) -> ExperimentConfig:
    return validate(ExperimentConfig, merge(TINY, changes), "tiny")


def planned(folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return plan(experiment(**(changes or {})), folder, **options)["settings"]["one"]


def rows(setting: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in setting["variants"]}


def gpt2_parameters(vocabulary: int, positions: int, width: int, layers: int) -> int:
    """Embeddings, blocks (12 d^2 + 13 d with biases and norms), the last norm; the head is tied."""
    return (vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width
