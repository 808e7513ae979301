"""Settings of students: one section an objective, told apart by `objective`.

What a student is trained on decides what else it can be given, so an unknown or misplaced key is an error here,
before anything runs. The classes that turn these sections into models and losses are in `cocomix.objectives.variants`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cocomix.model.build import MixConfig, ModelShape
from cocomix.utils.settings import Section

Sign = Literal["signed", "helpful", "absolute"]


class ConceptConfig(MixConfig):
    """What a CoCoMix student adds to its backbone."""

    top_k: int | None = Field(default=None, ge=1, description="concepts kept of the prediction; empty: the SAE's k")
    loss_weight: float = Field(default=0.1, ge=0, description="lambda, weight of the concept loss")
    loss_until: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the training over which lambda falls linearly to 0; empty: it stays",
    )


class BaseStudent(Section):
    """What every student has."""

    model: ModelShape = Field(default_factory=ModelShape)
    length: float = Field(
        default=1.0, gt=0, description="training length, as a multiple of students_train's; its schedule follows"
    )

    @property
    def reads(self) -> frozenset[str]:
        """What training needs besides tokens: `sae`, `labels`, `teacher` (live), `logits` (its stored ones)."""
        return frozenset()


class PlainStudent(BaseStudent):
    """A plain Transformers model, without concepts."""

    match_parameters: str | None = Field(
        default=None, description="widen this student until its parameter count is closest to the named student's"
    )


class NtpStudent(PlainStudent):
    """Next-token prediction alone: the baseline."""

    objective: Literal["ntp"]


class KdStudent(PlainStudent):
    """Knowledge distillation: next-token loss plus the KL divergence from the teacher's distribution."""

    objective: Literal["kd"]
    kd_weight: float = Field(default=0.1, ge=0, description="weight of the KL divergence")
    teacher_top_k: int | None = Field(
        default=None,
        ge=1,
        description="read the teacher's k most likely tokens from a store made once; empty: run the teacher each step",
    )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"teacher"} if self.teacher_top_k is None else {"logits"})


class CoCoMixStudent(BaseStudent):
    """Next-token loss plus the weighted concept loss; with `loss_weight: 0` the mixing alone, without labels."""

    objective: Literal["cocomix"]
    labels: str | None = Field(default=None, description="name of the label set")
    sign: Sign | None = Field(default=None, description="sign of those labels; empty: the first one they have")
    concept: ConceptConfig

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"sae"} if self.labels is None else {"sae", "labels"})

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if (self.labels is None) != (self.concept.loss_weight == 0):
            raise ValueError("a cocomix student needs `labels`, unless its concept.loss_weight is 0, then it has none")
        if self.labels is None and self.concept.loss_until is not None:
            raise ValueError("concept.loss_until has nothing to lower where concept.loss_weight is 0; leave it out")
        if self.labels is None and self.concept.mixer == "none":
            raise ValueError("with the mixer none and concept.loss_weight 0 there is nothing to train concepts with")
        return self


class PauseStudent(BaseStudent):
    """A learned vector in the extra slots, at the places the concepts would have (pause tokens)."""

    objective: Literal["pause"]
    mix: MixConfig = Field(default_factory=MixConfig)


class HiddenStudent(BaseStudent):
    """The teacher's hidden state is predicted and mixed in, instead of its concepts."""

    objective: Literal["hidden"]
    distance: Literal["l1", "l2", "cosine"] = Field(default="l2", description="between prediction and hidden state")
    loss_weight: float = Field(default=0.1, ge=0, description="weight of that distance")
    mix: MixConfig = Field(default_factory=MixConfig)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"teacher"})


class NcpStudent(BaseStudent):
    """Next-concept prediction as in ConceptLM (arXiv 2602.08984): no teacher, concepts are learned codes of chunks."""

    objective: Literal["ncp"]
    mix: MixConfig = Field(default_factory=lambda: MixConfig(mixer="add"))
    chunk: int = Field(default=4, ge=2, description="tokens a chunk")
    segments: int = Field(default=4, ge=1, description="parts a pooled hidden state is quantised in")
    codes: int = Field(default=64, ge=2, description="codes a part")
    layers: int = Field(default=1, ge=1, description="blocks of the module that predicts the next chunk's codes")
    ncp_weight: float = Field(default=0.1, ge=0, description="weight of the next-concept loss")
    vq_weight: float = Field(default=0.1, ge=0, description="weight of the quantisation loss")


class BootstrapStudent(BaseStudent):
    """CoCoMix without a teacher: the autoencoder learns on a slow-moving average of the student while it trains."""

    objective: Literal["bootstrap"]
    concept: ConceptConfig = Field(default_factory=ConceptConfig)
    source: Literal["top", "middle"] = Field(
        default="top", description="hidden state encoded: what feeds the final norm, or what enters concept_layer"
    )
    decay: float = Field(default=0.99, ge=0, lt=1, description="of the average, a step")
    n_latents: int = Field(default=1024, ge=1, description="number of concepts C")
    k: int = Field(default=16, ge=1, description="active latents per position K")
    labels_per_position: int = Field(default=4, ge=1, description="labels a position K_attr: its strongest latents")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the training before the concept loss begins")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if not self.labels_per_position <= self.k <= self.n_latents:
            raise ValueError(
                f"labels_per_position {self.labels_per_position}, k {self.k} and n_latents {self.n_latents}"
                " must not fall in this order; change one of them"
            )
        if self.concept.loss_until is not None:
            raise ValueError("concept.loss_until is for cocomix students; a bootstrap student has `warmup`")
        return self


StudentConfig = Annotated[
    NtpStudent | KdStudent | CoCoMixStudent | PauseStudent | HiddenStudent | NcpStudent | BootstrapStudent,
    Field(discriminator="objective"),
]
"""Any student; `objective` says which."""
