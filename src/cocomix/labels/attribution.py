"""Attribution: which of a position's active concepts matter for the next token.

With latents c[t] of the hidden state x[t], next-token loss L[t] = -log p(x[t+1] | x[<=t]) and reconstruction
D(c) = (W_dec c + pre_bias) * std + mean:

* `reference`: a[t] = c[t] * < d/dx[t] mean_s L[s], W_dec row >. Gradient of the mean loss at the original hidden
  state, without the factor std: to the last bit what the reference implementation computes. It also carries the
  losses of all later tokens.
* `exact`: a[t] = c[t] * dL[t]/dc[t] at x[t] := D(c[t]), every other position as it was. The paper's formula, for
  all positions from one two-stream pass (`cocomix.labels.exact`).
* `activation`: a[t] = c[t], no gradient.

The sign then says what is asked for: `signed` (a: concepts whose increase raises the loss), `helpful` (-a: those
that lower it), `absolute` (|a|). Larger is always better for label selection. The last position and padding have
no next token: their scores are 0.

`select_labels` then takes a position's top K_attr concepts, where it has that many with a positive score.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from transformers import PretrainedConfig, PreTrainedModel

from cocomix.labels.exact import fused_gelu, two_streams
from cocomix.model.flops import ModelParts, model_parts
from cocomix.model.teacher import NextTokenLoss, blocks, check_layer, frozen, has_next_token, hidden_at, resumed_at
from cocomix.sae.sae import SparseLatents, TopKSAE
from cocomix.utils.errors import CocomixError, ConfigError
from cocomix.utils.registry import Registry


class ActiveAttribution(NamedTuple):
    """Attribution of the K active latents of each position."""

    ids: torch.Tensor
    """latent indices, int64 `[batch, seq, K]`"""
    scores: torch.Tensor
    """attribution, `[batch, seq, K]`"""
    values: torch.Tensor
    """activations, `[batch, seq, K]`"""
    valid: torch.Tensor
    """whether the position has a next token, bool `[batch, seq]`"""


class Rule(ABC):
    """One way to score active latents."""

    name: ClassVar[str]
    """what settings call it"""
    has_sign: ClassVar[bool] = True
    """whether a score can be negative; without one the sign asked for changes nothing"""

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
        """Signed attribution `[batch, seq, K]` given hidden states `[batch, seq, d_model]` and their latents."""

    @classmethod
    @abstractmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        """Operations per token above the SAE.

        Args:
            parts: forward operations of the teacher's parts.
            blocks_above: blocks above the SAE's layer.
            sparse: operations of a sum over K rows of the decoder.
        """


class ReferenceRule(Rule):
    """Gradient of the mean loss at the original hidden states."""

    name = "reference"

    def scores(self, model, sae, input_ids, layer, attention_mask, hidden, latents):
        loss = NextTokenLoss(model, input_ids, attention_mask)
        with torch.enable_grad():
            x = hidden.detach().requires_grad_()
            with resumed_at(model, layer, x):
                mean = loss.total() / loss.count
            (gradient,) = torch.autograd.grad(mean, x)
        return latents.values * sae.active_directional_derivative(gradient, latents.ids)

    @classmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        return _forward_and_backward(parts, blocks_above) + sparse


class ExactRule(Rule):
    """Each position's own next-token loss at its reconstruction, from one two-stream pass."""

    name = "exact"

    def scores(self, model, sae, input_ids, layer, attention_mask, hidden, latents):
        loss = NextTokenLoss(model, input_ids, attention_mask)
        with two_streams(model, len(blocks(model)) - layer - 1) as streams:
            with torch.no_grad(), resumed_at(model, layer, hidden):
                streams.record(lambda: model.base_model(**loss.inputs))
            with torch.enable_grad():
                patched = sae.decode(latents).to(hidden.dtype).detach().requires_grad_()
                with resumed_at(model, layer, patched):
                    total = loss.total()
                (gradient,) = torch.autograd.grad(total, patched)
        return latents.values * latents.std * sae.active_directional_derivative(gradient, latents.ids)

    @classmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        # The plain stream needs the last block's keys and values only.
        plain = max(0.0, (blocks_above - 1) * parts.block + parts.keys_values)
        return plain + _forward_and_backward(parts, blocks_above) + 2 * sparse


class ActivationRule(Rule):
    """The activations themselves."""

    name = "activation"
    has_sign = False

    def scores(self, model, sae, input_ids, layer, attention_mask, hidden, latents):
        valid = has_next_token(input_ids, attention_mask)
        return latents.values * valid.unsqueeze(-1)

    @classmethod
    def flops_above(cls, parts: ModelParts, blocks_above: int, sparse: float) -> float:
        return 0.0


def _forward_and_backward(parts: ModelParts, blocks: int) -> float:
    """Of some blocks and the head, for activations only."""
    # The activation gradient of attention costs twice its forward pass, that of a matrix product once.
    return 2 * (blocks * parts.block + parts.head) + blocks * parts.attention


RULES: Registry[type[Rule]] = Registry("attribution rule", [ReferenceRule, ExactRule, ActivationRule])


def register_rule(cls: type[Rule]) -> type[Rule]:
    """Make an attribution rule of your own known by its `name`; usable as a decorator."""
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
    """Attribution of every concept at every position, 0 where it is not active.

    Args:
        concept_model: any Transformers causal LM; it takes no gradients.
        sae: autoencoder of its residual stream after block `layer` (0-based).
        input_ids: int64 `[batch, seq]`.
        rule: a name in `RULES`; see the module's equations.
        sign: a key of `SIGNS`; `activation` has no sign and ignores it.
        attention_mask: 1 for tokens, 0 for padding, `[batch, seq]`, either side.

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
) -> ActiveAttribution:
    """Attribution of the K active concepts of each position; `attribute` without the C-wide scatter.

    Raises:
        CocomixError: an unknown rule or sign, a layer outside the stack, or an SAE of another width.
    """
    RULES.choose(rule)
    check_sign(sign)
    check_layer(concept_model, layer)
    if sae.d_model != concept_model.config.hidden_size:
        raise CocomixError(
            f"the SAE reads hidden states {sae.d_model} wide and the concept model's are"
            f" {concept_model.config.hidden_size} wide; use an SAE trained on this model"
        )
    with frozen(concept_model), fused_gelu(concept_model), torch.no_grad():
        hidden = hidden_at(concept_model, input_ids, layer, attention_mask)
        latents = sae.encode(hidden)
        signed = RULES[rule]().scores(concept_model, sae, input_ids, layer, attention_mask, hidden, latents)
    valid = has_next_token(input_ids, attention_mask)
    return with_sign(ActiveAttribution(latents.ids, signed.detach(), latents.values, valid), rule, sign)


def with_sign(signed: ActiveAttribution, rule: str, sign: str) -> ActiveAttribution:
    """A `signed` attribution by `rule` with another sign; of a rule that has no sign it stays as it is."""
    return signed._replace(scores=SIGNS[sign](signed.scores)) if RULES[rule].has_sign else signed


def check_sign(sign: str) -> None:
    """Refuse a sign that does not exist.

    Raises:
        ConfigError: with those that do.
    """
    if sign not in SIGNS:
        raise ConfigError(f"there is no attribution sign {sign!r}; choose one of {', '.join(SIGNS)}")


def labelling_flops(config: PretrainedConfig, *, n_latents: int, k: int, layer: int, rule: str, seq_len: int) -> float:
    """Operations per token of labelling with `rule`: the teacher up to the SAE, its encoder, and the rule's own."""
    parts = model_parts(config, seq_len)
    encode, sparse = 2 * n_latents * config.hidden_size, 2 * k * config.hidden_size
    above = RULES[rule].flops_above(parts, parts.layers - layer - 1, sparse)
    return (layer + 1) * parts.block + encode + above


class ConceptLabels(NamedTuple):
    """Labels of each position, best first."""

    ids: torch.Tensor
    """concept indices, int64 `[batch, seq, k]`; meaningless where not valid"""
    scores: torch.Tensor
    """their scores, `[batch, seq, k]`"""
    valid: torch.Tensor
    """whether the position carries labels, bool `[batch, seq]`"""

    def targets(self) -> torch.Tensor:
        """`ids` with -100 where not valid, as `concept_labels` of the model's forward wants them."""
        return self.ids.masked_fill(~self.valid.unsqueeze(-1), -100)


def select_labels(scores: torch.Tensor, k: int, *, attention_mask: torch.Tensor | None = None) -> ConceptLabels:
    """Top `k` concepts of dense scores `[batch, seq, C]`.

    A position is valid where its k best scores are all positive and it has a next token: the last position,
    padding, and positions with too few usable concepts are not.
    """
    _check(k, scores.shape[-1])
    top = scores.topk(k, dim=-1)
    next_exists = has_next_token(torch.zeros(scores.shape[:2], dtype=torch.long, device=scores.device), attention_mask)
    return ConceptLabels(top.indices, top.values, (top.values > 0).all(-1) & next_exists)


def select_active(active: ActiveAttribution, k: int) -> ConceptLabels:
    """`select_labels` on the K active latents alone; the same labels wherever they are valid."""
    _check(k, active.scores.shape[-1])
    top = active.scores.topk(k, dim=-1)
    ids = active.ids.gather(-1, top.indices)
    return ConceptLabels(ids, top.values, (top.values > 0).all(-1) & active.valid)


def _check(k: int, available: int) -> None:
    if not 1 <= k <= available:
        raise CocomixError(f"k {k} labels cannot be chosen from {available} concepts; choose 1 to {available}")
