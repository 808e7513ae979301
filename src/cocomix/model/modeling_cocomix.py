"""The CoCoMix causal language model: "LLM Pretraining with Continuous Concepts" (Tack et al.), on the Transformers API.

`forward` is the method, top to bottom: the blocks below concept_layer, the concepts predicted from their hidden state,
the TopK of these projected to one continuous vector, the vector mixed into the remaining blocks, the losses. A
predictor says what is predicted and how it becomes a vector (`predictors.py`), a mixer how the vector joins the hidden
states (`mixers.py`); the blocks are in `transformer.py`.

Choices:
- Everything a Transformers user expects works: `generate` with a cache and beams, padding on either side, gradient
  checkpointing, autocast, `torch.compile`, `output_hidden_states`, a tied or resized vocabulary.
- `skip_logits` computes losses without ever holding the logits of all positions (`kernels/linear_cross_entropy.py`).
- `model.channel` is the predictor: the attribute, and with it the weights' names in saved models, keeps its first name.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from cocomix.kernels.linear_cross_entropy import linear_losses
from cocomix.kernels.plain_linear import apply_linear, plain_linear
from cocomix.model.cache import slot_cache
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.interventions import Steering, steered
from cocomix.model.mixers import MIXERS
from cocomix.model.predictors import PREDICTORS, Prediction
from cocomix.model.transformer import BACKBONES, BlockRunner, ParameterModule
from cocomix.utils.errors import ConfigError


@dataclass
class CoCoMixOutput(ModelOutput):
    """Output of `CoCoMixForCausalLM`.

    Attributes:
        loss: lm_loss + concept_loss_weight * concept_loss + channel_loss, of those there are labels for; a scalar.
        lm_loss: mean next-token cross entropy over the targets; a scalar.
        concept_loss: mean cross entropy of the concept logits over all labels; a scalar.
        logits: next-token logits, `[batch, seq, vocab]`.
        concept_logits: predicted concepts z, `[batch, seq, C]`, of a model whose channel is `concepts`.
        predicted_hidden: the teacher's normalised hidden state as predicted, `[batch, seq, target_size]`, of a model
            whose channel is `hidden`.
        channel_loss: the training loss of a channel that learns from itself (`ncp`), a scalar; only while training.
        hidden_states: after the embedding and after each block, `[batch, seq, d_model]`, from concept_layer on
            `[batch, slots, d_model]`; only if asked for.
        cache: keys and values; layers from concept_layer on hold every slot, two a token when interleaving.
    """

    loss: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    concept_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    concept_logits: torch.Tensor | None = None
    predicted_hidden: torch.Tensor | None = None
    channel_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    cache: Cache | None = None

    @property
    def past_key_values(self) -> Cache | None:
        """The name Transformers used for `cache` before 5.20."""
        return self.cache


def concept_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean of CE(z[t], i) over all labels i != -100: 1/K_attr sum_i (logsumexp(z[t]) - z[t, i]) per labelled position.

    One logsumexp and a gather stand for K_attr cross entropies over the same logits. Computed in float32 or better.

    Args:
        logits: z, `[batch, seq, C]`.
        labels: int64 `[batch, seq, K_attr]`; -100 is ignored.

    Returns:
        A scalar; 0 (still part of the graph) where nothing is labelled.
    """
    used = labels != -100
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = wide.gather(-1, labels.masked_fill(~used, 0))
    losses = wide.logsumexp(-1, keepdim=True) - chosen
    return (losses * used).sum() / used.sum().clamp_min(1)


class CoCoMixForCausalLM(PreTrainedModel, GenerationMixin):
    """A language model that predicts concepts mid-stack and mixes them back in (the paper's equations 4 to 6)."""

    config_class = CoCoMixConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean; Transformers' Trainer divides it by its accumulation steps
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}
    _tp_plan = {"backbone.embed_tokens": "embedding_rowwise", "lm_head": "colwise_gather_output"}

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.backbone = BACKBONES[config.backbone](config)
        self.mixer = MIXERS[config.mixer](config.hidden_size, **config.mixer_options)
        self.channel = PREDICTORS[config.channel](
            config, self.backbone, self.mixer.uses_vector, **config.channel_options
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if not self.channel.cacheable and self.generation_config is not None:
            self.generation_config.use_cache = False

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        concept_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **_: Any,
    ) -> CoCoMixOutput | tuple[Any, ...]:
        """One pass over `seq` tokens.

        Args:
            input_ids: int64 `[batch, seq]`; or `inputs_embeds` `[batch, seq, d_model]`.
            attention_mask: 1 for tokens, 0 for padding on either side, `[batch, past + seq]`.
            position_ids: `[batch, seq]`; without them unpadded tokens are counted.
            past_key_values: cache to read and extend (`cache` is its newer name).
            labels: int64 `[batch, seq]`, shifted inside; -100 and padding are ignored.
            concept_labels: int64 `[batch, seq, K_attr]`, concepts of each position, not shifted; -100 is ignored.
            use_cache: return a cache; not while training with gradient checkpointing.
            logits_to_keep: compute next-token logits for the last so many positions only, or for these; 0 is all.
            skip_logits: with `labels`, compute losses only: neither next-token logits nor, where `concept_labels` are
                given, concept logits are returned or ever held whole.
            output_hidden_states: return the hidden states after the embedding and after each block.
            return_dict: False returns a plain tuple of what is not None.

        Raises:
            ConfigError: more tokens than the model has positions.
        """
        embedded = self.backbone.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = self._cache(cache if cache is not None else past_key_values, use_cache)
        past = cache.get_seq_length() if cache is not None else 0
        self._check_length(past + embedded.shape[1])
        positions = _positions(position_ids, attention_mask, past, embedded.shape[1], embedded.device)
        padding = _padding(attention_mask)
        if padding is not None:
            labels, concept_labels = _unpadded(labels, concept_labels, padding)
        skip_logits = skip_logits and labels is not None and plain_linear(self.lm_head)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None

        blocks = BlockRunner(self.backbone.blocks, self.backbone, positions, padding, past, cache, hidden_states)
        hidden = self._lower_blocks(embedded, blocks)
        # Concept logits, their TopK, and the continuous vector these project to (equations 4 and 5).
        prediction = self.channel(hidden, positions, padding, concept_labels if skip_logits else None)
        # The vector joins the hidden states for the blocks that are left (equation 6: interleaved).
        hidden = self.mixer(hidden, prediction.vector, blocks)

        logits = None
        if skip_logits and labels is not None:
            lm_loss = self._fused_lm_loss(self.backbone.final_norm(hidden[:, :-1]), labels)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = apply_linear(self.lm_head, self.backbone.final_norm(hidden[:, kept]))
            lm_loss = None if labels is None else _lm_loss(logits, labels)
        concepts_loss = None if concept_labels is None else self._concept_loss(prediction, concept_labels)
        output = CoCoMixOutput(
            loss=self._total_loss(lm_loss, concepts_loss, prediction.loss),
            lm_loss=lm_loss,
            concept_loss=concepts_loss,
            logits=logits,
            concept_logits=prediction.concept_logits,
            predicted_hidden=prediction.hidden,
            channel_loss=prediction.loss,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            cache=cache,
        )
        keep_dict = self.config.return_dict if return_dict is None else return_dict
        return output if keep_dict else output.to_tuple()

    def _lower_blocks(self, embedded: torch.Tensor, blocks: BlockRunner) -> torch.Tensor:
        """The blocks below concept_layer, one slot a token: the hidden state entering it, `[batch, seq, d_model]`."""
        hidden = self.backbone.embed(embedded, blocks.positions)
        if blocks.hidden_states is not None:
            blocks.hidden_states.append(hidden)
        return blocks.run(hidden, blocks=self.config.concept_layer)

    def hidden_state(self, input_ids: torch.Tensor, *, top: bool) -> torch.Tensor:
        """The hidden state that feeds the final norm (`top`) or enters concept_layer, `[batch, seq, d_model]`.

        No padding; in the latter case no block above runs.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        blocks = BlockRunner(self.backbone.blocks, self.backbone, positions)
        hidden = self._lower_blocks(self.backbone.embed_tokens(input_ids), blocks)
        return self.mixer(hidden, self.channel(hidden, positions, None).vector, blocks) if top else hidden

    def steer(self, steering: Steering) -> AbstractContextManager[None]:
        """A context in which forward passes and generation have their predicted concepts changed.

        `with model.steer({123: Amplify(4.0), 7: Ablate(start=10)}): model.generate(...)`, or a list with one mapping
        per row. See `cocomix.model.steered`.

        Raises:
            CocomixError: on entering, if the model does not predict and use concepts, or has no such concept.
        """
        return steered(self, steering)

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            scale = getattr(module, "init_scale", 1.0)  # set on what writes to the residual stream
            nn.init.normal_(module.weight, std=std * scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, ParameterModule):
            module.reset_parameters(std)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embed_tokens = value  # pyright: ignore[reportAttributeAccessIssue]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to use: the caller's, a new one with room for every slot, or None."""
        if self.training and self.backbone.blocks[0].gradient_checkpointing:
            return None
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if not self.channel.cacheable or (cache is None and not use_cache):
            return None
        lower = self.config.concept_layer
        return slot_cache(cache, [1] * lower + self.mixer.cached_slots(self.config.num_hidden_layers - lower))

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.max_position_embeddings:
            raise ConfigError(
                f"{tokens} tokens are more than the model's {self.config.max_position_embeddings} positions;"
                " shorten the input or generate fewer tokens"
            )

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `generate`; prompts padded on the right are moved to the right end of their row first.

        Where a vector depends on more than its own position (`Predictor.cacheable`), no cache is used.
        """
        ids, mask = kwargs.get("input_ids", inputs), kwargs.get("attention_mask")
        if ids is not None and mask is not None and mask.shape == ids.shape and not bool(mask[:, -1].all()):
            order = mask.long().argsort(dim=1, stable=True)
            ids, kwargs["attention_mask"] = ids.gather(1, order), mask.gather(1, order)
        if not self.channel.cacheable:
            kwargs["use_cache"] = False
        if "input_ids" in kwargs:
            kwargs["input_ids"] = ids
        else:
            inputs = ids
        return super().generate(inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ):
        """The next step reads the cache this one returned, under whichever name this Transformers version gives it."""
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return updated | {name: outputs.cache for name in ("cache", "past_key_values") if name in updated}

    def _fused_lm_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross entropy from normed hidden states `[batch, seq - 1, d_model]`, without their logits."""
        weight: Any = self.lm_head.weight  # a module of another type would not have come here
        bias: Any = self.lm_head.bias
        return linear_losses(hidden.flatten(0, 1), weight, bias, labels[:, 1:].reshape(-1, 1)).mean

    def _concept_loss(self, prediction: Prediction, labels: torch.Tensor) -> torch.Tensor:
        if prediction.concept_losses is not None:
            return prediction.concept_losses.mean
        if prediction.concept_logits is None:
            raise ConfigError(f"the channel {self.config.channel} predicts no concepts; leave concept_labels out")
        return concept_loss(prediction.concept_logits, labels)

    def _total_loss(
        self, lm_loss: torch.Tensor | None, concepts_loss: torch.Tensor | None, channel_loss: torch.Tensor | None
    ) -> torch.Tensor | None:
        """lm_loss + channel_loss + lambda * concept_loss, of those there are; channel_loss counts with lm_loss only."""
        weighted = None if concepts_loss is None else self.config.concept_loss_weight * concepts_loss
        if lm_loss is None:
            return weighted
        return sum((loss for loss in (channel_loss, weighted) if loss is not None), lm_loss)


def _lm_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of logits `[batch, seq, vocab]` and the labels after them, in float32 or better."""
    wide = logits[:, :-1].flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    targets = labels[:, 1:].flatten()
    summed = F.cross_entropy(wide, targets, ignore_index=-100, reduction="sum")
    return summed / (targets != -100).sum().clamp_min(1)


def _positions(
    given: torch.Tensor | None, attention_mask: torch.Tensor | None, past: int, new: int, device: torch.device
) -> torch.Tensor:
    """Positions of the new tokens, `[batch or 1, new]`: as given, else counting unpadded tokens, else counting all."""
    if given is not None:
        return given[:, -new:]
    if attention_mask is None:
        return torch.arange(past, past + new, device=device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -new:]


def _unpadded(
    labels: torch.Tensor | None, concept_labels: torch.Tensor | None, padding: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Labels with -100 wherever the label or the position that predicts it is padding."""
    real = padding.bool()
    if labels is not None:
        predicted = torch.cat([real[:, :1], real[:, 1:] & real[:, :-1]], dim=1)
        labels = labels.masked_fill(~predicted, -100)
    if concept_labels is not None:
        concept_labels = concept_labels.masked_fill(~real.unsqueeze(-1), -100)
    return labels, concept_labels


def _padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask, or None where it hides nothing; a compiled graph does not look and keeps it."""
    if attention_mask is None or torch.compiler.is_compiling():
        return attention_mask
    return None if bool(attention_mask.all()) else attention_mask
