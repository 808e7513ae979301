"""The concept model (teacher): its blocks, hidden states after one of them, forward passes from there, and its loss.

Choices:
- Any Transformers causal LM works unchanged. Its own `forward` runs, and blocks that are not needed return the given
  hidden states, so embeddings, masks, rotary tables and final norms stay the library's.
- `NextTokenLoss` is differentiable in the hidden states. In nearly every causal LM the logits are one linear layer over
  the last hidden state. Where that holds to the bit, `linear_losses` computes the loss a chunk of positions at a time,
  and the logits of all positions never exist together. Models that do more (softcaps, scales) compute their own logits.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import linear_losses
from cocomix.kernels.plain_linear import is_wrapped, plain_linear
from cocomix.utils.errors import CocomixError

BLOCK_PATHS = ("transformer.h", "model.layers", "gpt_neox.layers", "model.decoder.layers", "transformer.blocks")
"""Attribute paths of the list of blocks, by model family."""
_extra_outputs: dict[type[nn.Module], int] = {}
"""Number of outputs besides the hidden states, by class of blocks (Bloom, Falcon: attention weights); set when seen."""


class _Stop(Exception):
    """Raised by a hook to end a forward pass early."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks.

    Raises:
        CocomixError: the blocks are at none of the `BLOCK_PATHS`.
    """
    for path in BLOCK_PATHS:
        module: Any = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    raise CocomixError(
        f"the blocks of {type(model).__name__} are at none of the known paths ({', '.join(BLOCK_PATHS)});"
        " use a GPT-2, GPT-NeoX, OPT, Llama-, Qwen- or Gemma-style model"
    )


def check_layer(model: nn.Module, layer: int) -> nn.Module:
    """The block `layer` (0-based).

    Raises:
        CocomixError: there is no such block.
    """
    stack = blocks(model)
    if not 0 <= layer < len(stack):
        raise CocomixError(
            f"layer {layer} is outside the concept model's {len(stack)} blocks; choose 0 to {len(stack) - 1}"
        )
    return stack[layer]


def model_inputs(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, Any]:
    """Keyword arguments of a forward pass; positions count unpadded tokens only, so padding has no effect.

    A model whose forward pass takes no positions (Bloom, MPT: attention is biased by distance) gets none.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    return inputs


def in_autocast_dtype(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype that a matrix product has under the current autocast."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device_type))


def hidden_at(
    model: PreTrainedModel, input_ids: torch.Tensor, layer: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Residual stream after block `layer` (0-based), `[batch, seq, d_model]`; no block above it runs."""
    caught: list[torch.Tensor] = []

    def stop(block: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, tuple):
            _extra_outputs[type(block)] = len(output) - 1
            output = output[0]
        caught.append(output)
        raise _Stop

    handle = check_layer(model, layer).register_forward_hook(stop)
    try:
        model(**model_inputs(model, input_ids, attention_mask))
    except _Stop:
        pass
    finally:
        handle.remove()
    return caught[0]


@contextmanager
def resumed_at(model: PreTrainedModel, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """Context in which forward passes skip blocks 0 to `layer` and use `hidden` `[batch, seq, d_model]` instead.

    `hidden_at` must have run on this class of blocks before: it notes how many outputs they have.
    """
    skipped = list(blocks(model))[: layer + 1]
    n_extra = _extra_outputs.get(type(skipped[0]))

    def replacement(*_args: Any, **_kwargs: Any) -> Any:
        return hidden if n_extra is None else (hidden, *[None] * n_extra)

    wrapped = [block.__dict__.get("forward") for block in skipped]  # e.g. by Accelerate's hooks
    try:
        for block in skipped:
            block.forward = replacement  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for block, previous in zip(skipped, wrapped, strict=True):
            del block.__dict__["forward"]
            if previous is not None:
                block.forward = previous  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Context with the model in evaluation mode and its weights without gradients; both are restored on exit."""
    training = model.training
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(training)


_heads: WeakKeyDictionary[nn.Module, tuple[nn.Module, bool]] = WeakKeyDictionary()
"""For each model its output embedding, and whether its logits are the output of that layer and nothing else."""


class NextTokenLoss:
    """Next-token loss of forward passes over the same tokens.

    Create it before the model is changed for the pass: the constructor may run the model to check its head.

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
        """Run the model and return the sum of -log p(next token): a scalar, float32 or better, differentiable once."""
        if self._head is None:
            return next_token_losses(self.model(**self.inputs).logits, self.input_ids)[self.valid].sum()
        hidden = self.model.base_model(**self.inputs).last_hidden_state
        targets = F.pad(self.input_ids[:, 1:], (0, 1)).masked_fill(~self.valid, -100).unsqueeze(-1)
        weight = in_autocast_dtype(self._head.weight)
        # One window at a time, so that its chunks, and the order of its sums, do not depend on its place in the batch.
        losses = [linear_losses(h, weight, self._head.bias, t) for h, t in zip(hidden, targets, strict=True)]
        return torch.stack([window.total for window in losses]).sum()


def linear_head(model: PreTrainedModel) -> nn.Linear | None:
    """The layer that maps `base_model`'s last hidden state to the logits; None if the model does more than that.

    Checked once for each model, on a few tokens.
    """
    head = model.get_output_embeddings()
    if head is None or not plain_linear(head) or model.base_model is model or is_wrapped(model):
        return None
    checked, is_linear = _heads.get(model, (None, False))
    if checked is not head:
        is_linear = _logits_are_linear(model, head)
        _heads[model] = (head, is_linear)
    return head if is_linear else None


@torch.no_grad()
def _logits_are_linear(model: PreTrainedModel, head: nn.Linear) -> bool:
    ids = torch.arange(min(4, head.out_features), device=head.weight.device)[None]
    with torch.autocast(head.weight.device.type, enabled=False):
        inputs = model_inputs(model, ids, torch.ones_like(ids))  # without a mask GPT-2 warns that ids look like padding
        hidden = getattr(model.base_model(**inputs), "last_hidden_state", None)
        logits = model(**inputs).logits
        return hidden is not None and torch.equal(head(hidden), logits)


def has_next_token(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Whether a position and the next one are both tokens, bool `[batch, seq]`; False at the last position."""
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return mask & F.pad(mask[:, 1:], (0, 1), value=False)


def next_token_losses(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """-log p(next token) at each position, `[batch, seq]`; 0 at the last one."""
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    return F.pad(losses.view(input_ids.shape[0], -1), (0, 1))
