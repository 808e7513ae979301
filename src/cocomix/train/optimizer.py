"""The paper's optimiser: AdamW, with weight decay on matrices only."""

from typing import Any

import torch
from torch import nn

from cocomix.train.config import TrainConfig

_FUSED = ("cpu", "cuda")


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`."""
    groups = parameter_groups(model, config.weight_decay)
    # One pass over parameters and moments instead of a dozen, where torch supports it.
    fused = all(parameter.device.type in _FUSED for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay, vectors (biases, norms) without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
