"""Next-token prediction with any Transformers causal language model."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from cocomix.evaluate.flops import model_flops
from cocomix.objectives.base import Objective


class NtpObjective(Objective):
    """Mean cross entropy of the next token over the `seq - 1` targets of each window."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(input_ids=batch["input_ids"], labels=batch["input_ids"], use_cache=False).loss

    def trainable(self) -> PreTrainedModel:
        return self.model

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def flops_per_token(self, seq_len: int) -> float:
        return model_flops(self.model.config, seq_len).training
