"""Which students of a run are the controls of which: recognised by their settings, whatever they are called.

A control has the concept student's shape, length, place and way of mixing, and within `SAME_SIZE` as many parameters;
a control with labels also its weight of the concept loss and the fall of this weight. Learning rates may differ, as
they may be chosen for each student. What is controlled: `random`, the same labels at other positions; `hash`, hashes of
the current token as labels; `mlp`, an MLP in the channel's place.
"""

from collections.abc import Mapping
from typing import Any

from cocomix.labels.controls import CONTROLS
from cocomix.model.build import MixConfig
from cocomix.model.mixers import MIXERS
from cocomix.objectives.base import StudentSettings
from cocomix.objectives.cocomix import CoCoMixStudent, ConceptConfig
from cocomix.objectives.hash import HashStudent
from cocomix.objectives.mlp import MlpStudent
from cocomix.pipeline.config import RunConfig

KINDS = ("random", "hash", "mlp")
SAME_SIZE = 0.05
"""Largest difference in parameters, as a share of the concept student's."""


def mixes_vector(student: StudentSettings) -> bool:
    """Whether the student mixes a vector in, which can be replaced."""
    return student.mixing is not None and MIXERS[student.mixing.mixer].uses_vector


def control_kind(config: RunConfig, student: StudentSettings) -> str | None:
    """What kind of control a student is: one of `KINDS` or another label control; None: it is none."""
    if isinstance(student, MlpStudent):
        return "mlp"
    if isinstance(student, HashStudent):
        return "hash" if student.of == "current" else "hash_next"
    if not isinstance(student, CoCoMixStudent) or not student.label_parts:
        return None
    if student.shuffled:
        return "random"
    rules = {config.labels[part.set].rule for part in student.label_parts}
    return rules.pop() if len(rules) == 1 and rules <= set(CONTROLS) else None


def controls_of(config: RunConfig, name: str, parameters: Mapping[str, int]) -> dict[str, str]:
    """The controls of a concept student by kind, the first of each; empty for a student that is none or a control.

    Args:
        parameters: of the students to choose from, by name.
    """
    student = config.students[name]
    if not (isinstance(student.mixing, ConceptConfig) and mixes_vector(student)) or control_kind(config, student):
        return {}
    found: dict[str, str] = {}
    for other, size in parameters.items():
        kind = control_kind(config, config.students[other])
        if kind not in KINDS or kind in found or abs(size - parameters[name]) > SAME_SIZE * parameters[name]:
            continue
        if _alike(student, config.students[other]) and _same_labels(config, student, config.students[other]):
            found[kind] = other
    return found


def _alike(student: StudentSettings, control: StudentSettings) -> bool:
    """Whether all is alike that the kind of control does not change."""
    ours, theirs = student.mixing, control.mixing
    assert ours is not None
    if theirs is None or (student.model, student.length) != (control.model, control.length):
        return False
    if _values(ours, MixConfig) != _values(theirs, MixConfig):
        return False
    return not isinstance(theirs, ConceptConfig) or (
        isinstance(ours, ConceptConfig)
        and (ours.loss_weight, ours.schedule, ours.top_k) == (theirs.loss_weight, theirs.schedule, theirs.top_k)
    )


def _values(mix: MixConfig, kind: type[MixConfig]) -> dict[str, Any]:
    return {field: getattr(mix, field) for field in kind.model_fields}


def _same_labels(config: RunConfig, student: StudentSettings, control: StudentSettings) -> bool:
    """Whether a control of moved labels moves this student's, and not another set's; true of every other control."""
    if not isinstance(control, CoCoMixStudent) or control_kind(config, control) != "random":
        return True
    sources = [config.labels[part.set].of or part.set for part in control.label_parts]
    return sources == [part.set for part in student.label_parts]
