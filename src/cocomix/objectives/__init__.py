"""What is minimised: one small class an objective; `cocomix.students.VARIANTS` says which student gets which."""

from cocomix.objectives.base import Objective
from cocomix.objectives.bootstrap import BootstrapObjective
from cocomix.objectives.cocomix import CoCoMixObjective
from cocomix.objectives.hidden import DISTANCES, HiddenObjective
from cocomix.objectives.kd import KdObjective, LiveTeacher, StoredTeacher
from cocomix.objectives.ntp import NtpObjective
from cocomix.objectives.sae import SaeObjective

__all__ = [
    "DISTANCES",
    "BootstrapObjective",
    "CoCoMixObjective",
    "HiddenObjective",
    "KdObjective",
    "LiveTeacher",
    "NtpObjective",
    "Objective",
    "SaeObjective",
    "StoredTeacher",
]
