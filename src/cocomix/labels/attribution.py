"""Attribution scores of active concepts for the next token, and the labels selected from them.

With latents c[t] of the hidden state x[t], next-token loss L[t] = -log p(x[t+1] | x[<=t]) and reconstruction
D(c) = (W_dec c + pre_bias) * std + mean, the rules are:

- `reference`: a[t] = c[t] * < d/dx[t] mean_s L[s], W_dec row >. The gradient of the mean loss at the original hidden
  state, without the factor std; equal to the last bit to the reference implementation. It also contains the losses of
  all later tokens.
- `exact`: a[t] = c[t] * dL[t]/dc[t] at x[t] := D(c[t]), with all other positions unchanged. The paper's formula; one
  two-stream pass gives it for all positions (`cocomix.labels.exact`).
- `activation`: a[t] = c[t], no gradient.

The sign is `signed` (a: concepts whose increase raises the loss), `helpful` (-a: those that lower it) or `absolute`
(|a|). A larger score is always better for selection. The last position and padding have no next token; their scores
are 0. `select_labels` takes the K_attr best concepts of each position that has that many with a positive score.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig, PreTrainedModel

from cocomix.labels.exact import can_run_tail, check_two_streams, fused_gelu, tail_inputs, two_streams
from cocomix.model.documents import document_positions
from cocomix.model.flops import ModelParts, model_parts
from cocomix.model.teacher import (
    NextTokenLoss,
    blocks,
    check_layer,
    frozen,
    gradient_at,
    has_next_token,
    hidden_at,
    resumed_at,
)
from cocomix.model.text_config import text_shape
from cocomix.sae.positions import NOTHING, LeftOut
from cocomix.sae.sae import SparseLatents, TopKSAE
from cocomix.utils.errors import CocomixError, ConfigError
from cocomix.utils.registry import Registry


class ActiveAttribution(NamedTuple):
    """Output of `attribute_active`: attribution of the K active latents of each position."""

    ids: torch.Tensor
    """latent indices, int64 `[batch, seq, K]`"""
    scores: torch.Tensor
    """attribution, `[batch, seq, K]`"""
    values: torch.Tensor
    """activations, `[batch, seq, K]`"""
    valid: torch.Tensor
    """whether the position has a next token and is not left out, bool `[batch, seq]`"""


class Rule(ABC):
    """Base class of attribution rules, which score active latents."""

    name: ClassVar[str]
    """name in settings"""
    has_sign: ClassVar[bool] = True
    """whether scores can be negative; if not, the sign setting has no effect"""
    sees_later_positions: ClassVar[bool] = True
    """whether a position's scores depend on what comes after its next token, padding too"""

    @abstractmethod
    def scores(
        self,
        model: PreTrainedModel,
        sae: TopKSAE,
        input_ids: torch.Tensor,
        layer: int,
        attention_mask: torch.Tensor | None,
        hidden: torch.Tensor,
        latents: SparseLatents,
    ) -> torch.Tensor:
        """Signed attribution `[batch, seq, K]` of the latents of hidden states `[batch, seq, d_model]`."""

    def scores_from(
        self,
        first: int,
        model: PreTrainedModel,
        sae: TopKSAE,
        input_ids: torch.Tensor,
        layer: int,
        attention_mask: torch.Tensor | None,
        hidden: torch.Tensor,
        latents: SparseLatents,
    ) -> torch.Tensor:
        """`scores` of which only those from position `first` on are used, which may be cheaper."""
        return self.scores(model, sae, input_ids, layer, attention_mask, hidden, latents)

    @classmethod
    @abstractmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        """FLOPs per token of the rule, above the SAE.

        Args:
            parts: forward FLOPs of the teacher's parts.
            blocks_above: number of blocks above the SAE's layer.
            sparse: FLOPs of a sum over K rows of the decoder.
        """


class ReferenceRule(Rule):
    """Gradient of the mean loss at the original hidden states."""

    name = "reference"

    def scores(self, model, sae, input_ids, layer, attention_mask, hidden, latents):
        loss = NextTokenLoss(model, input_ids, attention_mask)
        gradient = gradient_at(model, layer, hidden, lambda: loss.total() / loss.count)
        return latents.values * sae.active_directional_derivative(gradient, latents.ids)

    @classmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        return _forward_and_backward(parts, blocks_above) + sparse


class ExactRule(Rule):
    """Gradient of each position's own next-token loss at its reconstruction, from one two-stream pass."""

    name = "exact"
    sees_later_positions = False

    def scores(self, model, sae, input_ids, layer, attention_mask, hidden, latents):
        return self.scores_from(0, model, sae, input_ids, layer, attention_mask, hidden, latents)

    def scores_from(self, first, model, sae, input_ids, layer, attention_mask, hidden, latents):
        check_two_streams(model, layer)
        loss = NextTokenLoss(model, input_ids, attention_mask)
        tail = NextTokenLoss(model, input_ids[:, first:]) if first and attention_mask is None else loss
        with two_streams(model, len(blocks(model)) - layer - 1) as streams:
            with torch.no_grad(), resumed_at(model, layer, hidden):
                streams.record(lambda: model.base_model(**loss.inputs))
            if tail is loss or not can_run_tail(model, layer, streams):
                first, tail = 0, loss
            else:
                tail.inputs = tail_inputs(model, input_ids, first)
            used = SparseLatents(*(field[:, first:] for field in latents))
            with torch.enable_grad():
                patched = sae.decode(used).to(hidden.dtype).detach().requires_grad_()
                with resumed_at(model, layer, patched):
                    total = tail.total()
                (gradient,) = torch.autograd.grad(total, patched)
        scores = used.values * used.std * sae.active_directional_derivative(gradient, used.ids)
        return F.pad(scores, (0, 0, first, 0)) if first else scores

    @classmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        # Of the last block the plain stream needs keys and values only.
        plain = max(0.0, (blocks_above - 1) * parts.block + parts.keys_values)
        return plain + _forward_and_backward(parts, blocks_above) + 2 * sparse


class ActivationRule(Rule):
    """The activations themselves, without a gradient."""

    name = "activation"
    has_sign = False
    sees_later_positions = False

    def scores(self, model, sae, input_ids, layer, attention_mask, hidden, latents):
        valid = has_next_token(input_ids, attention_mask)
        return latents.values * valid.unsqueeze(-1)

    @classmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        return 0.0


def _forward_and_backward(parts: ModelParts, blocks: int) -> float:
    """FLOPs of `blocks` blocks and the head, forward and backward to activations only."""
    # In activations the backward pass of attention costs twice its forward pass, that of a matrix product once.
    return 2 * (blocks * parts.block + parts.head) + blocks * parts.attention


RULES: Registry[type[Rule]] = Registry("attribution rule", [ReferenceRule, ExactRule, ActivationRule])


def register_rule(cls: type[Rule]) -> type[Rule]:
    """Register an attribution rule under its `name`; usable as a decorator."""
    return RULES.register(cls)


SIGNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "signed": lambda scores: scores,
    "helpful": torch.neg,
    "absolute": torch.abs,
}


def attribute(
    concept_model: PreTrainedModel,
    sae: TopKSAE,
    input_ids: torch.Tensor,
    *,
    layer: int,
    rule: str = "exact",
    sign: str = "signed",
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attribution of every concept at every position; 0 where it is not active.

    Args:
        concept_model: any Transformers causal LM; its weights get no gradients.
        sae: autoencoder of its residual stream after block `layer` (0-based).
        input_ids: int64 `[batch, seq]`.
        rule: a name in `RULES`; equations are in the module docstring.
        sign: a key of `SIGNS`; the rule `activation` ignores it.
        attention_mask: 1 for tokens, 0 for padding on either side, `[batch, seq]`.

    Returns:
        `[batch, seq, C]` in the SAE's dtype.
    """
    active = attribute_active(
        concept_model, sae, input_ids, layer=layer, rule=rule, sign=sign, attention_mask=attention_mask
    )
    dense = active.scores.new_zeros(*active.scores.shape[:-1], sae.n_latents)
    return dense.scatter(-1, active.ids, active.scores)


def attribute_active(
    concept_model: PreTrainedModel,
    sae: TopKSAE,
    input_ids: torch.Tensor,
    *,
    layer: int,
    rule: str = "exact",
    sign: str = "signed",
    attention_mask: torch.Tensor | None = None,
    first: int = 0,
    left_out: LeftOut = NOTHING,
    padding: torch.Tensor | None = None,
) -> ActiveAttribution:
    """Attribution of the K active concepts of each position: `attribute` without the scatter to C columns.

    Args:
        first: positions before it are context alone, and not valid.
        left_out: positions that are not valid either.
        padding: bool `[batch, seq]`, behind the text, which no norm in `left_out` is compared with. A causal concept
            model's scores at the text do not depend on it, so a rule may need no attention mask beside it.

    Raises:
        CocomixError: the rule or sign is unknown, the layer does not exist, or the SAE has another width.
    """
    RULES.choose(rule)
    check_sign(sign)
    check_layer(concept_model, layer)
    width = text_shape(concept_model.config).hidden_size
    if sae.d_model != width:
        raise CocomixError(
            f"the SAE reads hidden states {sae.d_model} wide and the concept model's are {width} wide; use an SAE"
            " trained on this model"
        )
    with frozen(concept_model), fused_gelu(concept_model), torch.no_grad():
        hidden = hidden_at(concept_model, input_ids, layer, attention_mask)
        latents = sae.encode(hidden[:, first:])
        if first:
            latents = SparseLatents(*(F.pad(field, (0, 0, first, 0)) for field in latents))
        signed = RULES[rule]().scores_from(first, concept_model, sae, input_ids, layer, attention_mask, hidden, latents)
    positions = document_positions(concept_model, input_ids, attention_mask)
    valid = has_next_token(input_ids, attention_mask) & left_out.kept(hidden, padding, positions)
    valid[:, :first] = False
    return with_sign(ActiveAttribution(latents.ids, signed.detach(), latents.values, valid), rule, sign)


def with_sign(signed: ActiveAttribution, rule: str, sign: str) -> ActiveAttribution:
    """Apply a sign to a `signed` attribution by `rule`; unchanged if the rule has no sign."""
    return signed._replace(scores=SIGNS[sign](signed.scores)) if RULES[rule].has_sign else signed


def check_sign(sign: str) -> None:
    """Refuse an unknown sign.

    Raises:
        ConfigError: the sign is unknown; the message lists the known ones.
    """
    if sign not in SIGNS:
        raise ConfigError(f"there is no attribution sign {sign!r}; choose one of {', '.join(SIGNS)}")


def labelling_flops(config: PretrainedConfig, *, n_latents: int, k: int, layer: int, rule: str, seq_len: int) -> float:
    """FLOPs per token of labelling: the teacher up to the SAE's layer, the SAE's encoder, and the rule."""
    parts = model_parts(config, seq_len)
    width = text_shape(config).hidden_size
    encode, sparse = 2 * n_latents * width, 2 * k * width
    above = RULES[rule].flops_above(parts, parts.layers - layer - 1, sparse)
    return (layer + 1) * parts.block + encode + above


class ConceptLabels(NamedTuple):
    """Concept labels of each position, best first."""

    ids: torch.Tensor
    """concept indices, int64 `[batch, seq, k]`; undefined where not valid"""
    scores: torch.Tensor
    """their scores, `[batch, seq, k]`"""
    valid: torch.Tensor
    """whether the position carries labels, bool `[batch, seq]`"""

    def targets(self) -> torch.Tensor:
        """`ids` with -100 where not valid: `concept_labels` of the model's forward pass."""
        return self.ids.masked_fill(~self.valid.unsqueeze(-1), -100)


def select_labels(scores: torch.Tensor, k: int, *, attention_mask: torch.Tensor | None = None) -> ConceptLabels:
    """Select the top `k` concepts of dense scores `[batch, seq, C]`.

    A position is valid if its k best scores are all positive and it has a next token. The last position, padding, and
    positions with fewer than k positive scores are not valid.
    """
    _check(k, scores.shape[-1])
    top = scores.topk(k, dim=-1)
    next_exists = has_next_token(torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device), attention_mask)
    return ConceptLabels(top.indices, top.values, (top.values > 0).all(-1) & next_exists)


def select_active(active: ActiveAttribution, k: int) -> ConceptLabels:
    """`select_labels` from the K active latents alone; gives the same labels wherever they are valid."""
    _check(k, active.scores.shape[-1])
    top = active.scores.topk(k, dim=-1)
    ids = active.ids.gather(-1, top.indices)
    return ConceptLabels(ids, top.values, (top.values > 0).all(-1) & active.valid)


def _check(k: int, available: int) -> None:
    if not 1 <= k <= available:
        raise CocomixError(f"k {k} labels cannot be chosen from {available} concepts; choose 1 to {available}")
