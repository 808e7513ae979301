"""Typed, validated run configuration: one YAML file describes a whole run."""

from cocomix.config.load import load_config, save_config
from cocomix.config.run import (
    ConceptConfig,
    CorpusConfig,
    EvaluationConfig,
    LabelConfig,
    ModelShape,
    RunConfig,
    SaeConfig,
    StudentConfig,
    TeacherConfig,
    TokensConfig,
)

__all__ = [
    "ConceptConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "LabelConfig",
    "ModelShape",
    "RunConfig",
    "SaeConfig",
    "StudentConfig",
    "TeacherConfig",
    "TokensConfig",
    "load_config",
    "save_config",
]
