"""Training objectives: one file per objective, with its settings, its model and its loss."""

from cocomix.objectives.base import Objective, StudentSettings
from cocomix.objectives.bootstrap import BootstrapObjective
from cocomix.objectives.cocomix import CoCoMixObjective, ConceptConfig
from cocomix.objectives.hidden import DISTANCES, HiddenObjective
from cocomix.objectives.kd import KdObjective, LiveTeacher, StoredTeacher
from cocomix.objectives.ntp import NtpObjective, NtpStudent, PlainStudent
from cocomix.objectives.registry import OBJECTIVES, StudentConfig, build_student, register_objective
from cocomix.objectives.sae import SaeObjective

__all__ = [
    "DISTANCES",
    "OBJECTIVES",
    "BootstrapObjective",
    "CoCoMixObjective",
    "ConceptConfig",
    "HiddenObjective",
    "KdObjective",
    "LiveTeacher",
    "NtpObjective",
    "NtpStudent",
    "Objective",
    "PlainStudent",
    "SaeObjective",
    "StoredTeacher",
    "StudentConfig",
    "StudentSettings",
    "build_student",
    "register_objective",
]
