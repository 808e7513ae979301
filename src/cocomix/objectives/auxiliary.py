"""Base classes of objectives that add a second target to next-token prediction, for training alone.

The student is a plain Transformers model. What the second target needs besides it (heads) is trained with it, kept in
checkpoints and saved beside the model, in `heads/`; a loaded student is the plain model, so evaluation and generation
know nothing of them. While the second loss has no weight (`loss_until`), it is not computed.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import LinearLosses, linear_losses
from cocomix.kernels.plain_linear import plain_linear
from cocomix.model.build import ModelShape
from cocomix.model.flops import model_flops
from cocomix.model.initialisation import INITS
from cocomix.objectives.base import Objective, with_zero_gradients
from cocomix.objectives.ntp import PlainStudent, plain_head
from cocomix.objectives.schedule import FallingWeight, WeightSchedule
from cocomix.utils.errors import CocomixError


class AuxiliaryStudent(PlainStudent, FallingWeight):
    """A plain student with a second target; its weight may fall to 0 during training."""

    loss_weight: float = Field(default=1.0, ge=0, description="weight of the second loss")

    @model_validator(mode="after")
    def _logits_are_linear(self) -> Self:
        if self.model.logit_cap is not None:
            raise ValueError(
                f"the objective {self.name} reads the student's LM head, which a logit_cap bends; leave it out"
            )
        return self

    def describe_weight(self) -> str:
        """The weight and its schedule, in a few words."""
        return f"weight {self.loss_weight:g}{self.schedule.describe()}"


class WithHeads(nn.Module):
    """What is trained and kept in checkpoints: the student, and the heads that only training uses."""

    def __init__(self, student: PreTrainedModel, heads: nn.Module) -> None:
        super().__init__()
        self.student, self.heads = student, heads


class AuxiliaryObjective(Objective):
    """Next-token loss + weight * factor(progress) * second loss.

    Args:
        model: the student, whose logits are one linear layer over its last hidden state.
        heads: modules of the second loss.
        weight: its weight.
        schedule: of that weight.

    Raises:
        CocomixError: the student's logits are something else.
    """

    holds_logits = False

    def __init__(
        self, model: PreTrainedModel, heads: nn.Module, weight: float, schedule: WeightSchedule | None = None
    ) -> None:
        super().__init__()
        self.all = WithHeads(model, heads)
        self.weight, self.schedule = weight, schedule or WeightSchedule()
        self._head = (plain_head(model),)  # in a tuple, because it is the model's submodule and not this one's
        if self._head[0] is None and model.device.type != "meta":  # on which nothing can be tried out
            raise CocomixError(
                f"the logits of {type(model).__name__} are not one linear layer over its last hidden state, which"
                " this objective reads; give the student another backbone"
            )

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, progress = batch["input_ids"], batch["progress"]
        # The model itself is called because FSDP2 gathers its weights only then.
        states = self.all.student(
            input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1
        ).hidden_states
        if not self.schedule.over(progress):
            return self.total(ids, states, self.weight * self.schedule.factor(progress))
        return with_zero_gradients(self.next_token(ids, states), self.all.heads)

    def total(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...], weight: torch.Tensor | float) -> torch.Tensor:
        """Both losses, the second times `weight`; a scalar.

        Args:
            ids: int64 `[batch, seq]`.
            states: the embedding, the output of each block but the last, and the last one's after the final norm,
                `[batch, seq, d_model]` each.
        """
        return self.next_token(ids, states) + weight * self.second(ids, states)

    def next_token(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Mean cross entropy of the next token over the `seq - 1` targets of each window, a scalar."""
        return self.unembedded(states[-1][:, :-1], ids[:, 1:, None], z_weight=self.z_loss).mean

    @abstractmethod
    def second(self, ids: torch.Tensor, states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """The second loss, a mean over positions, a scalar."""

    def unembedded(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None = None,
        z_weight: float = 0.0,
    ) -> LinearLosses:
        """Cross entropies of `targets` `[batch, n, J]` from `hidden` `[batch, n, d_model]` by the student's LM head."""
        head = self.lm_head()
        weights = None if weights is None else weights.flatten(0, 1)
        inputs = hidden.flatten(0, 1), head.weight, head.bias, targets.flatten(0, 1)
        return linear_losses(*inputs, weights=weights, z_weight=z_weight)

    def lm_head(self) -> nn.Linear:
        """The student's LM head, whose weights are read in place of a call.

        Raises:
            CocomixError: it was replaced, or something was added to it (adapters, hooks).
        """
        head = self._head[0]
        if head is None or head is not self.all.student.get_output_embeddings() or not plain_linear(head, shards=True):
            raise CocomixError(
                "the student's LM head is not a plain linear layer any more, which this objective reads; leave it out"
                " of adapters and hooks"
            )
        return head

    def initialise_heads(self, shape: ModelShape) -> None:
        INITS[shape.init]().apply(self.all.student, self.all.heads)

    def trainable(self) -> WithHeads:
        return self.all

    def evaluated(self) -> PreTrainedModel:
        return self.all.student

    def save(self, folder: Path) -> None:
        self.all.student.save_pretrained(folder)
        tensors = {name: tensor.contiguous() for name, tensor in self.all.heads.state_dict().items()}
        if tensors:
            (folder / "heads").mkdir(exist_ok=True)
            save_file(tensors, folder / "heads" / "model.safetensors")

    @abstractmethod
    def second_flops(self, config: Any, seq_len: int) -> float:
        """Forward FLOPs per token of the second loss, beyond the student's own; `config` is the student's."""

    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs per token, as a mean over the training: the second loss ends where its weight does."""
        return self.flops_so_far(seq_len, 1.0)

    def flops_so_far(self, seq_len: int, progress: float) -> float:
        config: Any = self.all.student.config
        second = 3 * self.second_flops(config, seq_len) * self.schedule.share(progress)
        return model_flops(config, seq_len).training + second
