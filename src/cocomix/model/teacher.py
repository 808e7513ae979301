"""The concept model (teacher): its blocks, hidden states after one of them, forward passes from there, and its loss.

Choices:
- Any Transformers causal LM works unchanged. Its own `forward` runs, and blocks that are not needed return the given
  hidden states, so embeddings, masks, rotary tables and final norms stay the library's.
- `NextTokenLoss` is differentiable in the hidden states. In nearly every causal LM the logits are one linear layer over
  the last hidden state. Where that holds to the bit, `linear_losses` computes the loss a chunk of positions at a time,
  and the logits of all positions never exist together. Models that do more (softcaps, scales) compute their own logits.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import linear_losses
from cocomix.kernels.plain_linear import is_wrapped, plain_linear
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.mixers import MIXERS
from cocomix.model.text_config import text_shape
from cocomix.utils.errors import CocomixError, reason

BLOCK_PATHS = (
    "transformer.h",
    "model.layers",
    "gpt_neox.layers",
    "model.decoder.layers",
    "transformer.blocks",
    "model.language_model.layers",
)
"""Attribute paths of the list of blocks that are tried first; elsewhere it is found by its length."""
_extra_outputs: dict[type[nn.Module], int] = {}
"""Number of outputs besides the hidden states, by class of blocks (Bloom, Falcon: attention weights); set when seen."""


class _Stop(Exception):
    """Raised by a hook to end a forward pass early."""


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's list of blocks: at one of the `BLOCK_PATHS`, or the outermost list of as many modules as the text
    configuration states blocks.

    Raises:
        CocomixError: there is none.
    """
    for path in BLOCK_PATHS:
        module: Any = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, nn.ModuleList):
            return module
    if isinstance(model.config, CoCoMixConfig):
        if not MIXERS[model.config.mixer].uses_vector:  # nothing is mixed in: all blocks hold the tokens alone
            return model.backbone.blocks  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]
        raise CocomixError(
            f"the blocks of {type(model).__name__} are at none of the known paths, since above its concept layer they"
            " hold concepts beside the tokens; use a plain model"
        )
    count = text_shape(model.config).layers  # pyright: ignore[reportArgumentType]
    # Asked for its decoder first, a multimodal model does not offer the blocks of its image or audio encoder.
    for root in (getattr(model, "get_decoder", lambda: model)(), model):
        lists = [(name, module) for name, module in root.named_modules() if isinstance(module, nn.ModuleList)]
        matches = [(name.count("."), module) for name, module in lists if len(module) == count]
        if matches:
            return min(matches, key=lambda match: match[0])[1]
    raise CocomixError(
        f"{type(model).__name__} has no list of {count} blocks that cocomix can find (looked at"
        f" {', '.join(BLOCK_PATHS)}, and for a list of that length); use another model"
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
    parameters = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": input_ids}
    if "use_cache" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        inputs["use_cache"] = False
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
        if "position_ids" in parameters:
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
    """Residual stream after block `layer` (0-based), `[batch, seq, d_model]`; no block above it runs.

    Raises:
        CocomixError: there is no such block, or its output is no hidden state of each position.
    """
    return hidden_at_layers(model, input_ids, (layer,), attention_mask)[0]


def hidden_at_layers(
    model: PreTrainedModel, input_ids: torch.Tensor, layers: Sequence[int], attention_mask: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """`hidden_at` of several different layers, in their order, from one pass up to the deepest.

    Raises:
        CocomixError: as `hidden_at`.
    """
    for layer in layers:
        check_layer(model, layer)
    deepest = max(layers)
    caught: dict[int, Any] = {}

    def note(block: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, tuple | list):
            _extra_outputs[type(block)] = len(output) - 1

    def catch(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_block: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple | list) else output
            if layer == deepest:
                caught[layer] = hidden
                raise _Stop
            # The next block may write into it.
            caught[layer] = hidden.clone() if isinstance(hidden, torch.Tensor) else hidden

        return keep

    stack = blocks(model)
    handles = [block.register_forward_hook(note) for block in stack[: deepest + 1]]
    handles += [stack[layer].register_forward_hook(catch(layer)) for layer in layers]
    try:
        model(**model_inputs(model, input_ids, attention_mask))
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    width = text_shape(model.config).hidden_size
    for layer in layers:
        hidden = caught.get(layer)
        if not isinstance(hidden, torch.Tensor) or hidden.shape != (*input_ids.shape, width):
            shape = f" but {list(hidden.shape)}" if isinstance(hidden, torch.Tensor) else ""
            raise CocomixError(
                f"block {layer} of {type(model).__name__} does not give one hidden state a position"
                f" ({[*input_ids.shape, width]}{shape}), so it cannot be a concept model; use another model"
            )
    return [caught[layer] for layer in layers]


@contextmanager
def resumed_at(model: PreTrainedModel, layer: int, hidden: torch.Tensor) -> Iterator[None]:
    """Context in which forward passes skip blocks 0 to `layer` and use `hidden` `[batch, seq, d_model]` instead.

    `hidden_at` must have run on these classes of blocks before: it notes how many outputs they have.
    """
    skipped = list(blocks(model))[: layer + 1]

    def replacement(block: nn.Module) -> Callable[..., Any]:
        n_extra = _extra_outputs.get(type(block))
        output = hidden if n_extra is None else (hidden, *[None] * n_extra)
        return lambda *_args, **_kwargs: output

    wrapped = [block.__dict__.get("forward") for block in skipped]  # e.g. by Accelerate's hooks
    try:
        for block in skipped:
            block.forward = replacement(block)  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for block, previous in zip(skipped, wrapped, strict=True):
            block.__dict__.pop("forward", None)
            if previous is not None:
                block.forward = previous  # pyright: ignore[reportAttributeAccessIssue]


def gradient_at(
    model: PreTrainedModel, layer: int, hidden: torch.Tensor, value: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Gradient of a scalar at the hidden states after block `layer`, in their shape.

    Args:
        hidden: what the blocks above go on from, `[batch, seq, d_model]`.
        value: runs the model and returns the scalar.
    """
    with torch.enable_grad():
        x = hidden.detach().requires_grad_()
        with resumed_at(model, layer, x):
            scalar = value()
        (gradient,) = torch.autograd.grad(scalar, x)
    return gradient


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


_TRIAL = 6
"""Tokens of a trial pass."""


@torch.no_grad()
def check_teacher(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be a concept model, after a few passes over a few tokens.

    Labels are only right if the blocks hand one hidden state a position from one to the next and nothing else that a
    replaced hidden state would have to change, and if no position sees later tokens.

    Raises:
        CocomixError: it does not work like that; the message says what is different.
    """
    name, rows = type(model).__name__, text_shape(model.config).vocab_size
    ids = torch.arange(1, _TRIAL + 1, device=model.device)[None] % rows
    inputs = model_inputs(model, ids, None)
    with frozen(model), torch.autocast(model.device.type, enabled=False):
        try:
            logits = model(**inputs).logits
            other = model(**{**inputs, "input_ids": ids.clone().index_fill_(1, ids.new_tensor([_TRIAL - 1]), 0)}).logits
            hidden = hidden_at(model, ids, 0)
            with resumed_at(model, 0, hidden):
                resumed = model(**inputs).logits
            with resumed_at(model, 0, hidden.roll(1, -1)):  # a constant would vanish in the norms
                changed = model(**inputs).logits
        except CocomixError:
            raise
        except Exception as error:  # a model of any family may fail in any way on text alone
            raise CocomixError(
                f"{name} cannot be run on text alone, one block after the other ({type(error).__name__}:"
                f" {reason(error)}), so it cannot be a concept model; use another model"
            ) from error
    if logits.shape[:2] != ids.shape or not torch.isfinite(logits).all():
        raise CocomixError(
            f"{name} gives no finite next-token logits for each position (shape {list(logits.shape)});"
            " use intact weights, or another model"
        )
    if not _close(logits[:, :-1], other[:, :-1]):
        raise CocomixError(
            f"{name} lets positions see later tokens, so it does not predict the next one (BERT and its kind do so"
            " unless is_decoder is set in config.json); use a causal model"
        )
    if not _close(logits, resumed) or _close(logits, changed):
        raise CocomixError(
            f"the blocks of {name} do not pass on all they compute through one residual stream, so it cannot be changed"
            " after a block; use another model"
        )


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of logits are the same up to rounding in the model's precision."""
    first, second = first.float(), second.float()
    # The spread, because a logit may be anything from 0.001 to 1000, and half precision rounds to 3 digits.
    return bool((first - second).abs().max() <= 0.02 * first.std())


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
        # RemBERT has a layer between, of another width.
        return hidden is not None and hidden.shape[-1] == head.in_features and torch.equal(head(hidden), logits)


def has_next_token(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Whether a position and the next one are both tokens, bool `[batch, seq]`; False at the last position."""
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return mask & F.pad(mask[:, 1:], (0, 1), value=False)


def next_token_losses(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """-log p(next token) at each position, `[batch, seq]`; 0 at the last one."""
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    return F.pad(losses.view(input_ids.shape[0], -1), (0, 1))
