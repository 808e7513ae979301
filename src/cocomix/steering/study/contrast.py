"""A direction for each concept in the residual stream of a model that knows no concepts, and adding it.

The vector of a concept is v = mean of h / |h| over the positions at which the teacher's SAE has the concept active,
less the mean over all others, where h is the model's hidden state after a block. Steering adds dose * |h| * v: at dose
1 a position moves as far as the two means are apart.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.teacher import blocks, check_layer, hidden_at


def middle_block(model: nn.Module) -> int:
    """The block (0-based) after which half of the blocks are left, or one more."""
    return max(0, len(blocks(model)) // 2 - 1)


@torch.no_grad()
def contrast_vectors(
    model: PreTrainedModel, layer: int, text: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Difference of means of normalised hidden states, float64 `[concepts, d_model]`.

    Args:
        layer: the block (0-based) after which the hidden states are taken.
        text: tokens int64 `[batch, seq]`, and where each concept is active, bool `[batch, seq, concepts]`. The vector
            of a concept that is active nowhere, or everywhere, is 0.
    """
    inside: Any = 0.0
    counts: Any = 0.0
    total: Any = 0.0
    positions = 0
    for ids, active in text:
        hidden = hidden_at(model, ids.to(model.device), layer).flatten(0, 1).double()
        unit = hidden / hidden.norm(dim=-1, keepdim=True)
        on = active.flatten(0, 1).to(unit)
        inside, counts, total = inside + on.T @ unit, counts + on.sum(0)[:, None], total + unit.sum(0)
        positions += len(unit)
    vectors = inside / counts - (total - inside) / (positions - counts)
    return torch.where((counts > 0) & (counts < positions), vectors, 0.0)


@contextmanager
def shifted(model: PreTrainedModel, layer: int, vectors: torch.Tensor, dose: float) -> Iterator[None]:
    """Within: dose * |h| * v is added after block `layer`, h `[batch, seq, d_model]`.

    Args:
        vectors: v `[groups, d_model]`; the batch's rows are as many for each group, the rows of a group together.
    """

    def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        rows = vectors.to(hidden).repeat_interleave(len(hidden) // len(vectors), 0)
        changed = hidden + dose * hidden.norm(dim=-1, keepdim=True) * rows[:, None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = check_layer(model, layer).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()
