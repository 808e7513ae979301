"""Next-token losses of a concept model, with the gradient of its hidden states and no more.

Nearly every causal LM's logits are one linear layer over the last hidden state. Where that is so to the bit, logits
of all positions and their gradient never exist together: `linear_losses` goes through them a chunk at a time. Models
that do more (softcaps, scales) keep their own logits.
"""

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import is_wrapped, linear_losses
from cocomix.model.teacher import in_autocast_dtype, model_inputs

_heads: WeakKeyDictionary[nn.Module, tuple[nn.Module, bool]] = WeakKeyDictionary()
"""The output embedding a model was seen with, and whether its logits are that layer's and nothing else."""


class NextTokenLoss:
    """The loss of forward passes over the same tokens.

    Made before anything about the model is changed for the pass: it may have to be tried out.

    Args:
        input_ids: int64 `[batch, seq]`.
        attention_mask: 1 for tokens, 0 for padding, `[batch, seq]`, or None.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> None:
        self.model, self.input_ids = model, input_ids
        self.inputs = model_inputs(model, input_ids, attention_mask)
        self.valid = has_next_token(input_ids, attention_mask)
        self.count = self.valid.sum()
        self._head = linear_head(model)

    def total(self) -> torch.Tensor:
        """Run the model; the sum of -log p(next token), a scalar in float32 or better, differentiable once."""
        if self._head is None:
            return next_token_losses(self.model(**self.inputs).logits, self.input_ids)[self.valid].sum()
        hidden = self.model.base_model(**self.inputs).last_hidden_state
        targets = F.pad(self.input_ids[:, 1:], (0, 1)).masked_fill(~self.valid, -100).unsqueeze(-1)
        weight = in_autocast_dtype(self._head.weight)
        # A window at a time: its chunks, and with them the order of its sums, do not depend on its place in the batch.
        losses = [linear_losses(h, weight, self._head.bias, t) for h, t in zip(hidden, targets, strict=True)]
        return torch.stack([one.total for one in losses]).sum()


def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """The layer that alone turns `base_model`'s last hidden state into the model's logits; None where more happens.

    Tried out once for each model, on a few tokens.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model or is_wrapped(head):
        return None
    seen, alone = _heads.get(model, (None, False))
    if seen is not head:
        alone = _is_alone(model, head)
        _heads[model] = (head, alone)
    return head if alone else None


@torch.no_grad()
def _is_alone(model: PreTrainedModel, head: nn.Linear) -> bool:
    ids = torch.arange(min(4, head.out_features), device=head.weight.device)[None]
    with torch.autocast(head.weight.device.type, enabled=False):
        inputs = model_inputs(model, ids, torch.ones_like(ids))  # without a mask GPT-2 warns of what looks like padding
        hidden = getattr(model.base_model(**inputs), "last_hidden_state", None)
        logits = model(**inputs).logits
        return hidden is not None and torch.equal(head(hidden), logits)


def has_next_token(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Whether a position and its successor are both tokens, bool `[batch, seq]`; never at the last position."""
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return mask & F.pad(mask[:, 1:], (0, 1), value=False)


def next_token_losses(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """-log p(next token) per position, `[batch, seq]`; 0 at the last one."""
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    return F.pad(losses.view(input_ids.shape[0], -1), (0, 1))
