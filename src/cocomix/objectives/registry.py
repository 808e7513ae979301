"""The list of objectives, and `StudentConfig`, the type of a student in a run's configuration."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from transformers import PreTrainedModel

from cocomix.model.build import Sizes, parameter_count
from cocomix.objectives.base import OBJECTIVES, StudentSettings
from cocomix.objectives.bootstrap import BootstrapStudent
from cocomix.objectives.cocomix import CoCoMixStudent
from cocomix.objectives.dropped import DroppedStudent
from cocomix.objectives.hash import HashStudent
from cocomix.objectives.hidden import HiddenStudent
from cocomix.objectives.kd import KdStudent
from cocomix.objectives.mlp import MlpStudent
from cocomix.objectives.mtp import MtpStudent
from cocomix.objectives.ncp import NcpStudent
from cocomix.objectives.nextlat import NextLatStudent
from cocomix.objectives.nitp import NitpStudent
from cocomix.objectives.ntp import NtpStudent
from cocomix.objectives.pause import PauseStudent
from cocomix.objectives.prefix import PrefixStudent
from cocomix.objectives.retrofit import FinetuneStudent, RetrofitStudent
from cocomix.objectives.top import TopStudent

for _settings_class in (
    NtpStudent,
    KdStudent,
    CoCoMixStudent,
    DroppedStudent,
    PauseStudent,
    HiddenStudent,
    NcpStudent,
    BootstrapStudent,
    MtpStudent,
    TopStudent,
    NextLatStudent,
    NitpStudent,
    PrefixStudent,
    HashStudent,
    MlpStudent,
    RetrofitStudent,
    FinetuneStudent,
):
    OBJECTIVES.register(_settings_class)


def register_objective(cls: type[StudentSettings]) -> type[StudentSettings]:
    """Register an objective under its `name`; usable as a decorator."""
    return OBJECTIVES.register(cls)


def _validated(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "objective" not in value:
        missing: Any = {"type": "missing", "loc": ("objective",), "input": value}
        raise ValidationError.from_exception_data("student", [missing])
    return OBJECTIVES.choose(value["objective"]).model_validate(value)


StudentConfig = Annotated[SerializeAsAny[StudentSettings], BeforeValidator(_validated)]
"""Settings of any student; its `objective` selects the class that validates them."""


def build_student(students: Mapping[str, StudentSettings], name: str, sizes: Callable[[str], Sizes]) -> PreTrainedModel:
    """Build the student `name` of `students`, widened if it has to match another; `sizes` returns the sizes of each."""
    student, student_sizes = students[name], sizes(name)
    if student.same_size_as is not None:
        target = parameter_count(lambda: build_student(students, student.same_size_as or "", sizes))
        student = student.resized(target, student_sizes)
    return student.build(student_sizes)
