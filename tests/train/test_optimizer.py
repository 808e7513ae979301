"""The optimiser against the formula, one number at a time in float64."""

import torch
from torch import nn

from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import adamw


def test_steps_equal_adamw_written_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)).double()
    config = TrainConfig(steps=1, learning_rate=0.01, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-3)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [[torch.randn_like(one) for one in start] for _ in range(4)]
    optimizer = adamw(model, config)
    for step in gradients:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for place, parameter in enumerate(model.parameters()):
        decay = 0.2 if parameter.ndim >= 2 else 0.0
        for at in range(parameter.numel()):
            numbers = [step[place].flatten()[at].item() for step in gradients]
            expected = _adamw(start[place].flatten()[at].item(), numbers, decay)
            assert abs(parameter.flatten()[at].item() - expected) < 1e-12


def _adamw(value: float, gradients: list[float], decay: float) -> float:
    first = second = 0.0
    for step, gradient in enumerate(gradients, 1):
        value -= 0.01 * decay * value
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        value -= 0.01 * first / (1 - 0.8**step) / ((second / (1 - 0.9**step)) ** 0.5 + 1e-3)
    return value
