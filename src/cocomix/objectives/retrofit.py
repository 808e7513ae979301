"""Students that start as a finished plain model: with a concept channel (`retrofit`), or fine-tuned alike (`finetune`).

`retrofit` computes at first what its base does (`CoCoMixForCausalLM.from_plain`) and is then trained like any CoCoMix
student, in the part of it that `trains` says. `finetune` is what it is compared with: the same base, trained on the
same tokens in the same part, without a channel.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.adapters import TRAINED
from cocomix.model.build import ModelShape, Sizes
from cocomix.model.flops import TrainedPart, partial_training_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.model.text_config import text_shape
from cocomix.objectives.base import Objective, StudentSettings
from cocomix.objectives.cocomix import CoCoMixObjective, CoCoMixStudent, ConceptConfig
from cocomix.objectives.ntp import NtpObjective
from cocomix.sae.contrast import DIRECTIONS
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import added

TEACHER = "teacher"


class BaseStudent(StudentSettings):
    """Base class of students that start as a finished plain model."""

    model: ModelShape = Field(default_factory=ModelShape, description="not read: its shape is the base's")
    base: str = Field(
        default=TEACHER,
        description="the plain model it starts as: folder, hub id, GGUF file or `package:NAME`; `teacher`: the run's"
        " concept model",
    )
    trains: str = Field(default="channel", description=f"the part that is trained: {', '.join(TRAINED)}")
    lora_rank: int = Field(default=8, ge=1, description="rank of the LoRA matrices, with `trains: lora`")
    lora_alpha: float = Field(
        default=16.0, gt=0, allow_inf_nan=False, description="their product counts alpha / rank times"
    )
    saves: Literal["adapter", "merged"] = Field(
        default="adapter",
        description="adapter: what was trained, with the base's name and checksum; merged: the whole model, as always"
        " with `trains: all`",
    )

    @model_validator(mode="after")
    def _base_fits(self) -> Self:
        if self.trains not in TRAINED:
            raise ValueError(f"there is no part {self.trains!r} to train; choose one of {', '.join(TRAINED)}")
        if self.model != ModelShape():
            raise ValueError("its shape is the base's; leave `model` out")
        return self

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | (frozenset({TEACHER}) if self.base == TEACHER else frozenset())

    @property
    def reads_outputs(self) -> bool:
        return False  # it only starts as the concept model

    @property
    def depth(self) -> int | None:
        return None

    @property
    def starts_from(self) -> str | None:
        return None if self.base == TEACHER else self.base

    def base_model(self, sizes: Sizes) -> PreTrainedModel:
        """The base, in float32.

        Raises:
            CocomixError: it does not fit the run's tokens, or is not to be loaded now (for a plan).
        """
        if sizes.base is None:
            raise CocomixError("a student that starts as a finished model cannot be planned; leave it out of the plan")
        base = sizes.base()
        shape = text_shape(base.config)
        if shape.vocab_size < sizes.vocab_size:
            raise CocomixError(
                f"the base {self.base} has {shape.vocab_size} rows for tokens and the run's tokenizer"
                f" {sizes.vocab_size}; set tokens.tokenizer to the base's own"
            )
        if shape.positions is not None and shape.positions < sizes.seq_len:
            raise CocomixError(
                f"the base {self.base} has {shape.positions} positions, fewer than seq_len {sizes.seq_len}; lower"
                " seq_len"
            )
        return base

    def prepared(self, model: CoCoMixForCausalLM, sizes: Sizes) -> CoCoMixForCausalLM:
        """The student with the rest of it frozen."""
        model.base_name = sizes.base_name
        model.freeze_rest(self.trains, rank=self.lora_rank, alpha=self.lora_alpha)
        return model

    def describe_part(self) -> str:
        """What is trained, in a few words."""
        part = {"channel": "the channel alone", "all": "all of it", "lora": f"LoRA of rank {self.lora_rank}"}
        return f"from {self.base}, training {part[self.trains]}"


class RetrofitConcepts(ConceptConfig):
    """Settings of concept prediction and mixing in a model that had none."""

    mixer: str = Field(
        default="add",
        description="how the vector joins the hidden states: one that leaves a model as it is where the vector is zero,"
        " as at the start (add, gated_add, or drop_tokens with {slot: residual})",
    )


class RetrofitStudent(BaseStudent, CoCoMixStudent):
    """A finished model with a concept channel that starts at zero: next-token loss plus the weighted concept loss."""

    name = "retrofit"
    uses_sae_concepts = True

    concept: RetrofitConcepts = Field(default_factory=RetrofitConcepts)
    head_from: Literal["random", "sae"] = Field(
        default="random",
        description="where the concept head starts: at random, or as the encoder of the run's SAE, where base is the"
        " teacher and concept_layer the block after sae.layer",
    )

    vector_from: Literal["zero", "sae", "contrast", "pull"] = added(
        default="zero",
        description="where the vector's rows start: at zero, or, with `head_from: sae` and behind a learned gate that"
        " starts at zero, as the decoder of that SAE (sae), as differences of mean hidden states with and without each"
        " concept (contrast), or as these with what makes the concept's text likelier (pull)",
    )

    @model_validator(mode="after")
    def _starts_at_zero(self) -> Self:
        if self.concept.vector_scale is not None:
            raise ValueError("the vector of a retrofitted model starts at zero; leave concept.vector_scale out")
        if self.head_from == "sae" and self.base != TEACHER:
            raise ValueError("the run's SAE is of the concept model, so `head_from: sae` needs `base: teacher`")
        if self.vector_from != "zero" and self.head_from != "sae":
            raise ValueError(f"`vector_from: {self.vector_from}` is of the SAE's concepts; set `head_from: sae`, too")
        return self

    def build(self, sizes: Sizes) -> PreTrainedModel:
        concept, sae = self.concept, None
        if self.head_from == "sae":
            if concept.concept_layer != sizes.sae_layer + 1:
                raise CocomixError(
                    f"the SAE reads the output of block {sizes.sae_layer} and concepts are predicted before block"
                    f" {concept.concept_layer}, so the head cannot start as its encoder; set concept.concept_layer to"
                    f" {sizes.sae_layer + 1}, or head_from to random"
                )
            sae = None if sizes.sae is None else sizes.sae()
        rows = None
        if self.vector_from in DIRECTIONS and sizes.directions is not None:
            rows = sizes.directions(self.vector_from)
        elif self.vector_from == "sae" and sae is not None:
            rows = sae.decoder_weight.detach()
        model = CoCoMixForCausalLM.from_plain(
            self.base_model(sizes),
            concept_layer=concept.concept_layer,
            num_concepts=sizes.n_concepts,
            concept_top_k=concept.top_k or sizes.top_k,
            mixer=concept.mixer,
            mixer_options=concept.mixer_options,
            concept_loss_weight=concept.loss_weight,
            sae=sae,
            vector_rows=rows,
        )
        return self.prepared(model, sizes)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        if self.labels is None:
            return PartialNtpObjective(model, self)
        until, shape = self.concept.schedule
        return RetrofitObjective(
            model, self, until, shape=shape, label_flops=sizes.label_flops, forcing=self.concept.forcing(sizes)
        )

    def summary(self) -> str:
        return f"{super().summary()}, {self.describe_part()}"


class FinetuneStudent(BaseStudent):
    """A finished model trained on without concepts: what a retrofitted one is compared with."""

    name = "finetune"

    trains: str = Field(default="lora", description="the part that is trained: lora, all")
    concept_layer: int = Field(
        default=1,
        ge=1,
        description="first block (0-based) with LoRA matrices, as in the student it is compared with",
    )
    units: int = added(
        default=0,
        ge=0,
        description="inner units of an MLP where the channel would be, a control: as many parameters as that number of"
        " concepts; 0: none",
    )

    def keeps_teacher_up_to(self, block: int) -> bool:
        """Whether its hidden states after a block (0-based) are the concept model's, whatever it was trained on."""
        return self.base == TEACHER and self.trains == "lora" and self.concept_layer > block

    @model_validator(mode="after")
    def _has_something_to_train(self) -> Self:
        if self.trains == "channel" and not self.units:
            raise ValueError("without a channel there is nothing to train; set `trains` to lora or all, or give units")
        return self

    def build(self, sizes: Sizes) -> PreTrainedModel:
        # The same transformer as the retrofitted one; without units there is no mixer, and a predictor without weights.
        model = CoCoMixForCausalLM.from_plain(
            self.base_model(sizes),
            concept_layer=self.concept_layer,
            mixer="add" if self.units else "none",
            channel="mlp",
            num_concepts=max(1, self.units),
        )
        return self.prepared(model, sizes)

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return PartialNtpObjective(model, self)

    def summary(self) -> str:
        control = f" with an MLP of {self.units} units" if self.units else ""
        return f"next-token prediction{control}, {self.describe_part()}"


class TrainedParameters(nn.Module):
    """The parameters of a model that have gradients, under their names there: all that optimiser and checkpoints see.

    Args:
        model: stays as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple: no module of this one

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model[0].named_parameters(prefix, recurse, remove_duplicate):
            if parameter.requires_grad:
                yield name, parameter

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}


class PartialObjective(NtpObjective):
    """Base class of the losses of students of which a part is trained.

    Attributes:
        settings: the student's.
    """

    settings: BaseStudent

    def trainable(self) -> Any:
        return self.model if self.settings.trains == "all" else TrainedParameters(self.model)

    def evaluated(self) -> nn.Module:
        return self.model

    def save(self, folder: Path) -> None:
        model: Any = self.model
        if self.settings.saves == "merged" or self.settings.trains == "all":
            model.save_pretrained(folder)
        else:
            model.save_adapter(folder)

    def own_flops(self, seq_len: int) -> float | None:
        """FLOPs per training token of a part; None: everything is trained."""
        if self.settings.trains == "all":
            return None
        rank = self.settings.lora_rank if self.settings.trains == "lora" else None
        return partial_training_flops(self.model.config, seq_len, TrainedPart(rank))

    def flops_per_token(self, seq_len: int) -> float:
        own = self.own_flops(seq_len)
        return super().flops_per_token(seq_len) if own is None else own


class PartialNtpObjective(PartialObjective):
    """Next-token loss of a student of which a part is trained."""

    def __init__(self, model: Any, settings: BaseStudent) -> None:
        super().__init__(model)
        self.settings = settings


class RetrofitObjective(PartialObjective, CoCoMixObjective):
    """Next-token loss + lambda * concept loss of a student of which a part is trained."""

    def __init__(self, model: Any, settings: BaseStudent, until: float | None = None, **options: Any) -> None:
        CoCoMixObjective.__init__(self, model, until, **options)
        self.settings = settings

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return CoCoMixObjective.forward(self, batch)

    def flops_per_token(self, seq_len: int) -> float:
        own = self.own_flops(seq_len)
        return CoCoMixObjective.flops_per_token(self, seq_len) if own is None else own + self.label_flops
