"""From a student's settings to its model and its objective: one small class an objective, registered in `VARIANTS`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from transformers import PreTrainedModel

from cocomix.model.build import Sizes, build_mixed, build_plain, match_width, parameter_count
from cocomix.objectives.base import Objective
from cocomix.objectives.bootstrap import BootstrapObjective
from cocomix.objectives.cocomix import CoCoMixObjective
from cocomix.objectives.hidden import HiddenObjective
from cocomix.objectives.kd import KdObjective, LiveTeacher, StoredTeacher
from cocomix.objectives.ntp import NtpObjective
from cocomix.objectives.student_settings import (
    BootstrapStudent,
    CoCoMixStudent,
    HiddenStudent,
    KdStudent,
    NcpStudent,
    NtpStudent,
    PauseStudent,
)
from cocomix.sae.sae import TopKSAE


class Variant(ABC):
    """One objective's models."""

    recall: ClassVar[bool] = False
    """Whether its concepts are the labels' and can be compared with them."""

    @abstractmethod
    def model(self, config: Any, sizes: Sizes) -> PreTrainedModel:
        """The student, freshly initialised from torch's global generator."""

    @abstractmethod
    def objective(self, config: Any, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        """What it is trained on; `teacher` loads the concept model, for those that run it live."""

    def about(self, config: Any) -> str:
        """What it is, in a few words."""
        return self.what(config) + ("" if config.length == 1 else f", {config.length:g} times the steps")

    @abstractmethod
    def what(self, config: Any) -> str:
        """What sets its training apart."""


class Ntp(Variant):
    """Next-token prediction."""

    def model(self, config: NtpStudent, sizes: Sizes) -> PreTrainedModel:
        return build_plain(config.model, vocab_size=sizes.vocab_size, seq_len=sizes.seq_len, special=sizes.special)

    def objective(self, config: Any, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def what(self, config: Any) -> str:
        return "next-token prediction"


class Kd(Ntp):
    """Knowledge distillation."""

    def objective(
        self, config: KdStudent, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]
    ) -> Objective:
        source = LiveTeacher(teacher()) if config.teacher_top_k is None else StoredTeacher()
        return KdObjective(model, source, config.kd_weight)

    def what(self, config: KdStudent) -> str:
        where = "live" if config.teacher_top_k is None else f"its {config.teacher_top_k} likeliest tokens, stored"
        return f"distillation, KL weight {config.kd_weight:g}, teacher {where}"


class CoCoMix(Variant):
    """Concepts predicted and mixed in."""

    recall = True

    def model(self, config: CoCoMixStudent, sizes: Sizes) -> PreTrainedModel:
        return _with_concepts(config, sizes, sizes.n_concepts, sizes.top_k)

    def objective(
        self, config: CoCoMixStudent, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]
    ) -> Objective:
        if config.labels is None:
            return NtpObjective(model)
        return CoCoMixObjective(model, config.concept.loss_until, label_flops=sizes.label_flops)

    def what(self, config: CoCoMixStudent) -> str:
        concept = config.concept
        if config.labels is None:
            what = "no concept loss"
        else:
            what = f"labels {config.labels}{f'/{config.sign}' if config.sign else ''}, lambda {concept.loss_weight:g}"
            what += f" falling to 0 by {concept.loss_until:.0%}" if concept.loss_until else ""
        return f"concepts before block {concept.concept_layer}, {what}, mixing {_mixing(concept)}"


class Pause(Variant):
    """Pause tokens."""

    def model(self, config: PauseStudent, sizes: Sizes) -> PreTrainedModel:
        return build_mixed(config.model, config.mix, sizes, channel="pause")

    def objective(self, config: Any, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def what(self, config: PauseStudent) -> str:
        return f"a learned vector before block {config.mix.concept_layer}, mixing {_mixing(config.mix)}"


class Hidden(Variant):
    """Regression of the teacher's hidden state."""

    def model(self, config: HiddenStudent, sizes: Sizes) -> PreTrainedModel:
        options = {"target_size": sizes.teacher_width}
        return build_mixed(config.model, config.mix, sizes, channel="hidden", channel_options=options)

    def objective(
        self, config: HiddenStudent, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]
    ) -> Objective:
        return HiddenObjective(
            model, teacher(), layer=sizes.sae_layer, distance=config.distance, weight=config.loss_weight
        )

    def what(self, config: HiddenStudent) -> str:
        return (
            f"the teacher's hidden state predicted, {config.distance} loss times {config.loss_weight:g},"
            f" mixing {_mixing(config.mix)}"
        )


class Ncp(Variant):
    """Next-concept prediction in ConceptLM's manner."""

    def model(self, config: NcpStudent, sizes: Sizes) -> PreTrainedModel:
        names = ("chunk", "segments", "codes", "layers", "ncp_weight", "vq_weight")
        options = {name: getattr(config, name) for name in names}
        return build_mixed(config.model, config.mix, sizes, channel="ncp", channel_options=options)

    def objective(self, config: Any, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def what(self, config: NcpStudent) -> str:
        return (
            f"next-concept prediction (ConceptLM's manner), chunks of {config.chunk} tokens,"
            f" {config.segments} x {config.codes} codes, mixing {_mixing(config.mix)}"
        )


class SelfTaught(Variant):
    """CoCoMix without a teacher."""

    def model(self, config: BootstrapStudent, sizes: Sizes) -> PreTrainedModel:
        return _with_concepts(config, sizes, config.n_latents, config.k)

    def objective(
        self, config: BootstrapStudent, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]
    ) -> Objective:
        return BootstrapObjective(
            model,
            TopKSAE(config.model.width, config.n_latents, config.k),
            top=config.source == "top",
            decay=config.decay,
            labels_per_position=config.labels_per_position,
            warmup=config.warmup,
        )

    def what(self, config: BootstrapStudent) -> str:
        return (
            f"no teacher: concepts of the student's own average ({config.source} hidden state),"
            f" lambda {config.concept.loss_weight:g}, mixing {_mixing(config.concept)}"
        )


def _with_concepts(config: CoCoMixStudent | BootstrapStudent, sizes: Sizes, n_concepts: int, k: int) -> PreTrainedModel:
    """A student that predicts `n_concepts` concepts; `k` are kept unless its settings say otherwise."""
    concept = config.concept
    return build_mixed(
        config.model,
        concept,
        sizes,
        num_concepts=n_concepts,
        concept_top_k=concept.top_k or k,
        concept_loss_weight=concept.loss_weight,
    )


def _mixing(mix: Any) -> str:
    options = ", ".join(f"{name} {value}" for name, value in mix.mixer_options.items())
    return f"{mix.mixer} ({options})" if options else mix.mixer


VARIANTS: dict[str, Variant] = {
    "ntp": Ntp(),
    "kd": Kd(),
    "cocomix": CoCoMix(),
    "pause": Pause(),
    "hidden": Hidden(),
    "ncp": Ncp(),
    "bootstrap": SelfTaught(),
}
"""By the name in a student's `objective`."""


def build_student(students: Mapping[str, Any], name: str, sizes: Callable[[str], Sizes]) -> PreTrainedModel:
    """The student `name` of `students`, widened where it is to match another; `sizes` gives each one's."""
    student, mine = students[name], sizes(name)
    matched = getattr(student, "match_parameters", None)
    if matched is not None:
        target = parameter_count(lambda: build_student(students, matched, sizes))
        shape = match_width(student.model, target, vocab_size=mine.vocab_size, seq_len=mine.seq_len)
        student = student.model_copy(update={"model": shape})
    return VARIANTS[student.objective].model(student, mine)
