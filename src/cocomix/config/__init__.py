"""Typed, validated run configuration: one YAML file describes a whole run."""

from cocomix.config.load import save_config
from cocomix.config.run import (
    CorpusConfig,
    EvaluationConfig,
    LabelConfig,
    RunConfig,
    SaeConfig,
    TeacherConfig,
    TokensConfig,
    load_config,
)
from cocomix.config.shape import MixConfig, ModelShape
from cocomix.config.students import ConceptConfig, StudentConfig

__all__ = [
    "ConceptConfig",
    "CorpusConfig",
    "EvaluationConfig",
    "LabelConfig",
    "MixConfig",
    "ModelShape",
    "RunConfig",
    "SaeConfig",
    "StudentConfig",
    "TeacherConfig",
    "TokensConfig",
    "load_config",
    "save_config",
]
