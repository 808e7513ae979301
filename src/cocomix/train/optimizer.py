"""AdamW as the paper's set-up has it, with decay where it belongs."""

from typing import Any

import torch
from torch import nn

from cocomix.train.config import TrainConfig

_FUSED = ("cpu", "cuda")


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """The optimiser of `model`'s trainable parameters."""
    groups = parameter_groups(model, config.weight_decay)
    # One pass over parameters and moments in place of a dozen, where torch has it.
    fused = all(parameter.device.type in _FUSED for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (biases, norms) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
