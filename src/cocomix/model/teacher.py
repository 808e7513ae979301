"""What is needed of a concept model: its blocks, the hidden states after one, and a forward pass from there on.

Any Transformers causal LM serves as it is. Its own `forward` does all the work; blocks that need not run are
passed through, so embeddings, masks, rotary tables and final norms stay the library's.
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

from cocomix.kernels.linear_cross_entropy import is_wrapped, linear_losses
from cocomix.utils.errors import CocomixError

BLOCK_PATHS = ("transformer.h", "model.layers", "gpt_neox.layers", "model.decoder.layers", "transformer.blocks")
"""Where model families keep their list of blocks."""
_extras: dict[type[nn.Module], int] = {}
"""How many results beside the hidden states a class of blocks returns, once seen (Bloom, Falcon: attention weights)."""


class _Stop(Exception):
    """Raised by a hook to end a forward pass early."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks.

    Raises:
        CocomixError: an architecture whose blocks are in none of `BLOCK_PATHS`.
    """
    for path in BLOCK_PATHS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise CocomixError(
        f"{type(model).__name__} keeps its blocks where cocomix does not look ({', '.join(BLOCK_PATHS)});"
        " use a GPT-2, GPT-NeoX, OPT, Llama-, Qwen- or Gemma-style model"
    )


def check_layer(model: nn.Module, layer: int) -> nn.Module:
    """The block `layer` (0-based).

    Raises:
        CocomixError: it is outside the stack.
    """
    stack = blocks(model)
    if not 0 <= layer < len(stack):
        raise CocomixError(
            f"layer {layer} is outside the concept model's {len(stack)} blocks; choose 0 to {len(stack) - 1}"
        )
    return stack[layer]


def model_inputs(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> dict[str, Any]:
    """Keyword arguments of a forward pass; positions count unpadded tokens only, so padding changes nothing.

    A model that takes no positions (Bloom, MPT: distances bias the attention instead) gets none.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
        if "position_ids" in inspect.signature(model.forward).parameters:
            inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    return inputs


def in_autocast_dtype(x: torch.Tensor) -> torch.Tensor:
    """`x` as a matrix product under the present autocast would see it."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def hidden_at(
    model: PreTrainedModel, input_ids: torch.Tensor, layer: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Residual stream after block `layer` (0-based), `[batch, seq, d_model]`; nothing above it runs."""
    caught: list[torch.Tensor] = []

    def stop(block: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, tuple):
            _extras[type(block)] = len(output) - 1
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
    """Within: forward passes skip blocks 0 to `layer`, as if their result were `hidden` `[batch, seq, d_model]`.

    `hidden_at` must have seen the model's kind of blocks before, which is where hidden states come from.
    """
    skipped = list(blocks(model))[: layer + 1]
    extras = _extras.get(type(skipped[0]))

    def passed_through(*_args: Any, **_kwargs: Any) -> Any:
        return hidden if extras is None else (hidden, *[None] * extras)

    wrapped = [block.__dict__.get("forward") for block in skipped]  # e.g. by Accelerate's hooks
    try:
        for block in skipped:
            block.forward = passed_through  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for block, before in zip(skipped, wrapped, strict=True):
            del block.__dict__["forward"]
            if before is not None:
                block.forward = before  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Within: evaluation mode and no gradients into the weights; both are put back afterwards."""
    training = model.training
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)


# Next-token losses of a concept model, with the gradient of its hidden states and no more.
#
# Nearly every causal LM's logits are one linear layer over the last hidden state. Where that is so to the bit, logits
# of all positions and their gradient never exist together: `linear_losses` goes through them a chunk at a time. Models
# that do more (softcaps, scales) keep their own logits.

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
