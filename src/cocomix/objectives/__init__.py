"""What a student is trained on: one file an objective, with its settings, its model and its loss."""

from cocomix.objectives.base import Objective
from cocomix.objectives.bootstrap import BootstrapObjective
from cocomix.objectives.cocomix import CoCoMixObjective
from cocomix.objectives.hidden import DISTANCES, HiddenObjective
from cocomix.objectives.kd import KdObjective, LiveTeacher, StoredTeacher
from cocomix.objectives.ntp import NtpObjective
from cocomix.objectives.sae import SaeObjective
from cocomix.objectives.student_settings import ConceptConfig, StudentConfig
from cocomix.objectives.variants import VARIANTS, Variant, build_student

__all__ = [
    "DISTANCES",
    "VARIANTS",
    "BootstrapObjective",
    "CoCoMixObjective",
    "ConceptConfig",
    "HiddenObjective",
    "KdObjective",
    "LiveTeacher",
    "NtpObjective",
    "Objective",
    "SaeObjective",
    "StoredTeacher",
    "StudentConfig",
    "Variant",
    "build_student",
]
