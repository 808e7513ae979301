"""Next-token prediction with any Transformers causal language model: the baseline, and the base of other objectives."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import linear_losses
from cocomix.kernels.plain_linear import plain_linear
from cocomix.model.build import Sizes, build_plain
from cocomix.model.flops import model_flops
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM, z_losses
from cocomix.model.teacher import linear_head
from cocomix.objectives.base import Objective, StudentSettings


class PlainStudent(StudentSettings):
    """A plain Transformers model, without concepts."""

    match_parameters: str | None = Field(
        default=None, description="widen this student until its parameter count is closest to the named student's"
    )

    @property
    def same_size_as(self) -> str | None:
        return self.match_parameters

    def build(self, sizes: Sizes) -> PreTrainedModel:
        return build_plain(self.model, vocab_size=sizes.vocab_size, seq_len=sizes.seq_len, special=sizes.special)


class NtpStudent(PlainStudent):
    """Next-token prediction alone: the baseline."""

    name = "ntp"

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        return NtpObjective(model)

    def summary(self) -> str:
        return "next-token prediction"


class NtpObjective(Objective):
    """Mean cross entropy of the next token over the `seq - 1` targets of each window.

    Baselines also use the fused loss, so that seconds can be compared: where a model's logits are one linear layer over
    its last hidden state, they are never held whole (`cocomix.kernels.linear_cross_entropy`).
    """

    holds_logits = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._head = (plain_head(model),)  # in a tuple, because it is the model's submodule and not this one's

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, head = batch["input_ids"], self._head[0]
        if isinstance(self.model, CoCoMixForCausalLM):
            return self.model(input_ids=ids, labels=ids, use_cache=False, skip_logits=True, z_loss=self.z_loss).loss
        if head is None or head is not self.model.get_output_embeddings() or not plain_linear(head, shards=True):
            output = self.model(input_ids=ids, labels=ids, use_cache=False)
            return output.loss + self.z_loss * z_losses(output.logits[:, :-1]).mean() if self.z_loss else output.loss
        # The model itself is called because FSDP2 gathers its weights only then.
        output = self.model(input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        hidden = output.hidden_states[-1]
        targets = ids[:, 1:].reshape(-1, 1)
        hidden = hidden[:, :-1].flatten(0, 1)
        return linear_losses(hidden, head.weight, head.bias, targets, z_weight=self.z_loss).mean

    def trainable(self) -> PreTrainedModel:
        return self.model

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def flops_per_token(self, seq_len: int) -> float:
        return model_flops(self.model.config, seq_len).training


def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The linear layer that maps the last of the model's `hidden_states` to its logits; None if there is none."""
    if isinstance(model, CoCoMixForCausalLM) or model.device.type == "meta":
        return None
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    training = model.training
    model.eval()
    try:
        head = linear_head(model)
        return head if head is not None and _reads_last_hidden_state(model, head) else None
    finally:
        model.train(training)


@torch.no_grad()
def _reads_last_hidden_state(model: PreTrainedModel, head: nn.Linear) -> bool:
    ids = torch.zeros(1, 2, dtype=torch.int64, device=head.weight.device)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True)
    return torch.equal(head(output.hidden_states[-1]), output.logits)
