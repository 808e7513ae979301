"""What is minimised: one small class an objective, registered in `OBJECTIVES`."""

from cocomix.objectives.base import Objective
from cocomix.objectives.cocomix import CoCoMixObjective
from cocomix.objectives.ntp import NtpObjective
from cocomix.objectives.sae import SaeObjective

OBJECTIVES: dict[str, type[NtpObjective] | type[CoCoMixObjective]] = {
    "ntp": NtpObjective,
    "cocomix": CoCoMixObjective,
}
"""Objectives that train a language model, by the name used in a config."""

__all__ = ["OBJECTIVES", "CoCoMixObjective", "NtpObjective", "Objective", "SaeObjective"]
