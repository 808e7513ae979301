"""`cocomix doctor`: is everything here that cocomix needs, and if not, what to do about it."""

from cocomix.doctor.check import CHECKS, Check, Finding, State, Where, examine
from cocomix.doctor.show import print_findings

__all__ = ["CHECKS", "Check", "Finding", "State", "Where", "examine", "print_findings"]
