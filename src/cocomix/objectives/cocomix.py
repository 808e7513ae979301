"""CoCoMix: next-token loss plus the weighted concept loss (lambda in the paper, `concept.loss_weight` in settings)."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from transformers import PreTrainedModel

from cocomix.labels.attribution import check_sign
from cocomix.labels.schedule import LabelPart, describe_parts, label_phases
from cocomix.model.build import MixConfig, ModelShape, Sizes, build_mixed
from cocomix.model.mixers import MIXERS
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.objectives.base import Objective, StudentSettings, describe_mixing
from cocomix.objectives.forcing import Forcing
from cocomix.objectives.ntp import NtpObjective
from cocomix.objectives.schedule import FallingWeight, Shape, WeightSchedule
from cocomix.utils.settings import added


class ConceptConfig(FallingWeight, MixConfig):
    """Settings of concept prediction and mixing; lambda may fall to 0."""

    top_k: int | None = Field(default=None, ge=1, description="concepts kept of the prediction; empty: the SAE's k")
    loss_weight: float = Field(default=0.1, ge=0, description="lambda, weight of the concept loss")
    teacher_forcing: float = added(
        default=0.0,
        ge=0,
        le=1,
        description="share of the training windows in which labelled positions mix in their labels in place of what is"
        " predicted there, with the strengths of the prediction",
    )
    steered: float = added(
        default=0.0,
        ge=0,
        le=1,
        description="share of the training windows that are steered toward a concept which their labels have more often"
        " than usual, at every position and by different strengths, so that the upper blocks learn what steering means",
    )

    def forcing(self, sizes: Sizes) -> Forcing:
        """The windows in which other concepts than the predicted ones are mixed in."""
        if not self.steered or sizes.label_counts is None:
            return Forcing(self.teacher_forcing, self.steered)
        counts = torch.from_numpy(sizes.label_counts())
        return Forcing(self.teacher_forcing, self.steered, counts / counts.sum().clamp_min(1))


LabelSets = Annotated[
    Annotated[str, Tag("name")] | Annotated[tuple[LabelPart, ...], Tag("parts")] | Annotated[None, Tag("none")],
    Discriminator(lambda value: "none" if value is None else "parts" if isinstance(value, list | tuple) else "name"),
]
"""The name of a label set, or several sets."""


class CoCoMixStudent(StudentSettings):
    """Next-token loss plus the weighted concept loss; with `loss_weight: 0` mixing only, without labels."""

    name = "cocomix"
    uses_sae_concepts = True

    labels: LabelSets = Field(
        default=None,
        description="name of the label set; or several, as a list of `set` with `sign`, `until` and `share`: one after"
        " the other, and those with the same `until` mixed",
    )
    sign: str | None = Field(default=None, description="sign of those labels; empty: the first one they have")
    shuffled: bool = added(
        default=False, description="train on those labels moved to other positions at random: a control"
    )
    mix_labels_by: Literal["window", "position"] = added(
        default="window", description="what gets the labels of one of several sets that are read at the same time"
    )
    label_weights: Literal["equal", "predictability"] = added(
        default="equal",
        description="equal, or by the nats above the marginal at which a linear probe predicts a label's concept"
        " (measured by `label --predictability`), 0 at least and 1 on average",
    )
    concept: ConceptConfig

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"sae"} if self.labels is None else {"sae", "labels"})

    @property
    def label_set(self) -> str | None:
        return self.label_parts[-1].set if self.label_parts else None

    @property
    def label_sign(self) -> str | None:
        return self.sign

    @property
    def label_parts(self) -> tuple[LabelPart, ...]:
        if isinstance(self.labels, str):
            return (LabelPart(set=self.labels, sign=self.sign),)
        return self.labels or ()

    @property
    def mixes_labels_by_position(self) -> bool:
        return self.mix_labels_by == "position"

    @property
    def weighs_labels(self) -> bool:
        return self.label_weights == "predictability"

    @property
    def shuffles_labels(self) -> bool:
        return self.shuffled

    @property
    def mixing(self) -> ConceptConfig:
        return self.concept

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.sign is not None:
            check_sign(self.sign)
        if (self.labels is None) != (self.concept.loss_weight == 0):
            raise ValueError("a cocomix student needs `labels`, unless its concept.loss_weight is 0, then it has none")
        if isinstance(self.labels, tuple):
            label_phases(self.labels)
            if self.sign is not None:
                raise ValueError("`sign` is for one label set; with several, give each part its own")
        if self.weighs_labels and (self.labels is None or self.shuffled):
            what = "no labels" if self.labels is None else "`shuffled` labels, which nothing predicts"
            raise ValueError(f"label_weights are for labels that a text predicts, and these are {what}; leave it out")
        if self.labels is None and self.shuffled:
            raise ValueError("there are no labels that could be `shuffled`; give `labels`, or leave it out")
        if self.labels is None and self.concept.loss_until is not None:
            raise ValueError("concept.loss_until has nothing to lower where concept.loss_weight is 0; leave it out")
        forced = self.concept.teacher_forcing + self.concept.steered
        if forced and (self.labels is None or not MIXERS[self.concept.mixer].uses_vector):
            name = "teacher_forcing" if self.concept.teacher_forcing else "steered"
            missing = "has no labels" if self.labels is None else f"has the mixer {self.concept.mixer}"
            raise ValueError(f"concept.{name} mixes labels in, and this student {missing}; leave it out")
        if forced > 1:
            raise ValueError("concept.teacher_forcing and concept.steered are of different windows; lower one of them")
        if self.labels is None and not MIXERS[self.concept.mixer].uses_vector:
            raise ValueError(
                f"with the mixer {self.concept.mixer} and concept.loss_weight 0 there is nothing to train concepts with"
            )
        return self

    def build(self, sizes: Sizes) -> PreTrainedModel:
        return build_with_concepts(self.model, self.concept, sizes, sizes.n_concepts, sizes.top_k)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        if self.labels is None:
            return NtpObjective(model)
        until, shape = self.concept.schedule
        return CoCoMixObjective(
            model,
            until,
            shape=shape,
            label_flops=sizes.label_flops,
            forcing=self.concept.forcing(sizes),
        )

    def summary(self) -> str:
        concept = self.concept
        if self.labels is None:
            loss = "no concept loss"
        else:
            loss = "shuffled " * self.shuffled
            loss += f"labels {describe_parts(self.label_parts, self.mix_labels_by)}"
            loss += " weighted by predictability" * self.weighs_labels + f", lambda {concept.loss_weight:g}"
            loss += concept.schedule.describe()
        if concept.teacher_forcing:
            loss += f", teacher forcing in {concept.teacher_forcing:.0%} of the windows"
        if concept.steered:
            loss += f", {concept.steered:.0%} of the windows steered"
        return f"concepts before block {concept.concept_layer}, {loss}, mixing {describe_mixing(concept)}"


def build_with_concepts(
    shape: ModelShape, concept: ConceptConfig, sizes: Sizes, n_concepts: int, k: int
) -> CoCoMixForCausalLM:
    """Build a student that predicts `n_concepts` concepts and keeps `concept.top_k` of them (if not set, `k`)."""
    return build_mixed(
        shape,
        concept,
        sizes,
        num_concepts=n_concepts,
        concept_top_k=concept.top_k or k,
        concept_loss_weight=concept.loss_weight,
    )


class OwnConceptsStudent(StudentSettings):
    """Base class of students that predict concepts of their own and not those of the run's SAE."""

    concept: ConceptConfig = Field(default_factory=ConceptConfig)
    n_latents: int = Field(default=1024, ge=1, description="number of concepts C")
    k: int

    @model_validator(mode="after")
    def _has_no_labels_to_mix_in(self) -> Self:
        if self.concept.teacher_forcing + self.concept.steered:
            raise ValueError(
                f"concept.teacher_forcing and concept.steered are for stored labels, and the objective {self.objective}"
                " makes its own; leave them out"
            )
        return self

    @property
    def mixing(self) -> ConceptConfig:
        return self.concept

    @property
    def own_latents(self) -> int:
        return self.n_latents

    def build(self, sizes: Sizes) -> PreTrainedModel:
        return build_with_concepts(self.model, self.concept, sizes, self.n_latents, self.k)


class CoCoMixObjective(NtpObjective):
    """Next-token loss + lambda * concept loss of a `CoCoMixForCausalLM`.

    The batch also has `concept_labels` `[batch, seq, k]` and, if it is a part of a batch, `concept_weight`, with which
    the losses of all parts add up to the mean over all labelled positions.

    Args:
        model: the student.
        until: share of the training over which lambda falls to 0; None: it stays.
        shape: how it falls.
        label_flops: FLOPs per token of computing labels, if they are computed during training.
        forcing: windows in which other concepts than the predicted ones are mixed in. The concept loss is that of the
            prediction everywhere.
    """

    def __init__(
        self,
        model: CoCoMixForCausalLM,
        until: float | None = None,
        *,
        shape: Shape = "linear",
        label_flops: float = 0.0,
        forcing: Forcing | None = None,
    ) -> None:
        super().__init__(model)
        self.schedule, self.label_flops = WeightSchedule(until, shape), label_flops
        self.forcing = forcing or Forcing()

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = {name: batch[name] for name in ("concept_label_weights",) if name in batch}
        with self.forcing.applied(self.model, batch["concept_labels"]):
            output = self.model(
                input_ids=batch["input_ids"],
                labels=batch["input_ids"],
                concept_labels=batch["concept_labels"],
                use_cache=False,
                skip_logits=True,
                z_loss=self.z_loss,
                **weights,
            )
        weight = self.model.config.concept_loss_weight * batch.get("concept_weight", 1.0)
        if self.schedule.until is not None:
            weight = weight * self.schedule.factor(batch["progress"])
        return output.lm_loss + weight * output.concept_loss

    def flops_per_token(self, seq_len: int) -> float:
        return super().flops_per_token(seq_len) + self.label_flops
