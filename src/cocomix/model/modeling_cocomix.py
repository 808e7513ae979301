"""The CoCoMix language model: "LLM Pretraining with Continuous Concepts" (Tack et al.), on the Transformers API.

`CoCoMixModel.forward` is the method, top to bottom: the blocks below concept_layer, the concepts predicted from their
hidden state, the TopK of these projected to one continuous vector, the vector mixed into the remaining blocks.
`CoCoMixForCausalLM` adds the LM head and the losses. A predictor says what is predicted and how it becomes a vector
(`predictors.py`), a mixer how the vector joins the hidden states (`mixers.py`); the blocks are in `transformer.py`.

Choices:
- Everything a Transformers user expects works: `Trainer`, `generate` with a cache and beams, padding on either side,
  gradient checkpointing, autocast, `torch.compile`, `output_hidden_states`, a tied or resized vocabulary. What this
  takes besides the method is in `transformers_api.py`; docs/reference/transformers.md lists it.
- `skip_logits` computes losses without ever holding the logits of all positions (`kernels/linear_cross_entropy.py`).
- `model.channel` is the predictor: the attribute, and with it the weights' names in saved models, keeps its first name.
- The weights of a `CoCoMixForCausalLM` are registered under their first names (`backbone`, `mixer`, `channel`), too;
  its base model, `model`, is a `CoCoMixModel` of the same modules.
"""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.utils.generic import ModelOutput

from cocomix.kernels.linear_cross_entropy import LinearLosses, linear_losses
from cocomix.kernels.plain_linear import apply_linear, plain_linear
from cocomix.model.adapters import HUB_OPTIONS, freeze_rest, has_lora, load_adapter, merged_state_dict, save_adapter
from cocomix.model.cache import slot_cache
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.documents import document_rule
from cocomix.model.interventions import Steering, steered
from cocomix.model.mixers import MIXERS, Mixer
from cocomix.model.plain_models import check_same, copy_weights, plain_settings
from cocomix.model.predictors import PREDICTORS, ConceptPredictor, Prediction, Predictor
from cocomix.model.transformer import BACKBONES, Backbone, BlockRunner
from cocomix.model.transformers_api import (
    CoCoMixGenerationMixin,
    CoCoMixPreTrainedModel,
    check_attention_mask,
    hidden_from_trainer,
)
from cocomix.model.vector_replacements import VectorReplacement, vector_replaced
from cocomix.utils.errors import ConfigError


@dataclass
class CoCoMixModelOutput(ModelOutput):
    """Output of `CoCoMixModel`.

    Attributes:
        last_hidden_state: input of the LM head, after the final norm, `[batch, seq, d_model]`.
        cache: keys and values; layers from concept_layer on hold every slot, two a token when interleaving.
        hidden_states: as in `CoCoMixOutput`.
        attentions: as in `CoCoMixOutput`.
        concept_logits: as in `CoCoMixOutput`.
        predicted_hidden: as in `CoCoMixOutput`.
        channel_loss: as in `CoCoMixOutput`.
        concept_losses: cross entropies of the concept labels, where they stand for the logits.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    concept_logits: torch.Tensor | None = None
    predicted_hidden: torch.Tensor | None = None
    channel_loss: torch.Tensor | None = None
    concept_losses: LinearLosses | None = None

    @property
    def past_key_values(self) -> Cache | None:
        """The name Transformers used for `cache` before 5.20."""
        return self.cache


@dataclass
class CoCoMixOutput(ModelOutput):
    """Output of `CoCoMixForCausalLM`.

    Attributes:
        loss: lm_loss + concept_loss_weight * concept_loss + channel_loss, of those there are labels for; a scalar.
        logits: next-token logits, `[batch, seq, vocab]`.
        lm_loss: mean next-token cross entropy over the targets; a scalar.
        concept_loss: mean cross entropy of the concept logits over all labels; a scalar.
        concept_logits: predicted concepts z, `[batch, seq, C]`, of a model whose channel is `concepts`.
        predicted_hidden: the teacher's normalised hidden state as predicted, `[batch, seq, target_size]`, of a model
            whose channel is `hidden`.
        channel_loss: the training loss of a channel that learns from itself (`ncp`), a scalar; only while training.
        hidden_states: after the embedding and after each block, `[batch, seq, d_model]`, from concept_layer on
            `[batch, slots, d_model]`; only if asked for. The final norm is not applied to the last.
        attentions: attention weights of each block, `[batch, heads, slots, past and present slots]`; one slot a token
            below concept_layer; only if asked for.
        cache: keys and values; layers from concept_layer on hold every slot, two a token when interleaving.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    concept_loss: torch.Tensor | None = None
    concept_logits: torch.Tensor | None = None
    predicted_hidden: torch.Tensor | None = None
    channel_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cache: Cache | None = None

    @property
    def past_key_values(self) -> Cache | None:
        """The name Transformers used for `cache` before 5.20."""
        return self.cache


def concept_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of CE(z[t], i) over all labels i != -100: 1/K_attr sum_i (logsumexp(z[t]) - z[t, i]) per labelled position.

    One logsumexp and a gather stand for K_attr cross entropies over the same logits. Computed in float32 or better.

    Args:
        logits: z, `[batch, seq, C]`.
        labels: int64 `[batch, seq, K_attr]`; -100 is ignored.
        weights: of the labels, of the same shape; the mean is still over their number. None: 1 each.

    Returns:
        A scalar; 0 (still part of the graph) where nothing is labelled.
    """
    used = labels != -100
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = wide.gather(-1, labels.masked_fill(~used, 0))
    losses = wide.logsumexp(-1, keepdim=True) - chosen
    counted = losses * used if weights is None else losses * used * weights
    return counted.sum() / used.sum().clamp_min(1)


class Parts(NamedTuple):
    """The modules of a model below its LM head."""

    backbone: Backbone
    mixer: Mixer
    channel: Predictor


def _build_parts(config: CoCoMixConfig) -> Parts:
    backbone = BACKBONES[config.backbone](config, **config.options_of_backbone)
    mixer = MIXERS[config.mixer](config.hidden_size, **config.mixer_options)
    channel = PREDICTORS[config.channel](config, backbone, mixer.uses_vector, **config.channel_options)
    return Parts(backbone, mixer, channel)


class CoCoMixModel(CoCoMixPreTrainedModel):
    """The model below the LM head: predicts concepts mid-stack and mixes them back in (the paper's equations 4 to 6).

    Args:
        parts: modules to use; those of a `CoCoMixForCausalLM`, which are then initialised by it. None: new ones.

    Attributes:
        mixes: whether concepts are predicted and mixed in; False: the blocks run as those of a plain model.
    """

    mixes: bool = True

    def __init__(self, config: CoCoMixConfig, parts: Parts | None = None) -> None:
        super().__init__(config)
        self.backbone, self.mixer, self.channel = parts or _build_parts(config)
        if parts is None:
            self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        fused_labels: torch.Tensor | None = None,
        fused_weights: torch.Tensor | None = None,
        **_: Any,
    ) -> CoCoMixModelOutput | tuple[Any, ...]:
        """One pass over `seq` tokens; arguments as in `CoCoMixForCausalLM.forward`.

        Args:
            fused_labels: int64 `[batch, seq, K_attr]`: compute the losses of these concepts, and not all logits.
            fused_weights: of these losses, of the same shape; None: 1 each.
        """
        embedded = self._embedded(input_ids, inputs_embeds)
        cache = cache if cache is not None else past_key_values
        rule = document_rule(self.config)
        if attention_mask is not None or position_ids is not None or cache is not None or use_cache:
            rule = None
        cache = self._cache(cache, use_cache if rule is None else False)
        past = cache.get_seq_length() if cache is not None else 0
        self._check_length(past + embedded.shape[1])
        check_attention_mask(attention_mask, len(embedded), past + embedded.shape[1])
        positions = _positions(position_ids, attention_mask, past, embedded.shape[1], embedded.device)
        padding, documents = shown_padding(attention_mask), None
        if rule is not None and input_ids is not None:
            positions, documents = rule.positions(input_ids), rule.numbers(input_ids)
        hidden_states = _list_if(output_hidden_states, self.config.output_hidden_states)
        attentions = _list_if(output_attentions, self.config.output_attentions)

        blocks = BlockRunner(
            self.backbone.blocks, self.backbone, positions, padding, past, cache, hidden_states, attentions, documents
        )
        hidden = self._lower_blocks(embedded, blocks)
        if self.mixes:
            # Concept logits, their TopK, and the continuous vector these project to (equations 4 and 5).
            weighted = () if fused_weights is None else (fused_weights,)
            prediction = self.channel(hidden, positions, padding, fused_labels, *weighted)
            # The vector joins the hidden states for the blocks that are left (equation 6: interleaved).
            hidden = self.mixer(hidden, prediction.vector, blocks)
        else:
            prediction, hidden = Prediction(None), blocks.run(hidden)

        output = CoCoMixModelOutput(
            last_hidden_state=self.backbone.final_norm(hidden),
            cache=cache,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            attentions=None if attentions is None else tuple(attentions),
            concept_logits=prediction.concept_logits,
            predicted_hidden=prediction.hidden,
            channel_loss=prediction.loss,
            concept_losses=prediction.concept_losses,
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
        rule = document_rule(self.config)
        if rule is None:
            positions, documents = torch.arange(input_ids.shape[1], device=input_ids.device)[None], None
        else:
            positions, documents = rule.positions(input_ids), rule.numbers(input_ids)
        blocks = BlockRunner(self.backbone.blocks, self.backbone, positions, documents=documents)
        hidden = self._lower_blocks(self.backbone.embed_tokens(input_ids), blocks)
        if not top:
            return hidden
        if not self.mixes:
            return blocks.run(hidden)
        return self.mixer(hidden, self.channel(hidden, positions, None).vector, blocks)

    def _embedded(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("a model reads either input_ids or inputs_embeds; pass exactly one of them")
        return self.backbone.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def _cache(self, cache: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to use: the caller's, a new one with room for every slot, or None."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if not self.channel.cacheable:
            if cache is not None:
                raise ConfigError(
                    f"a model with the channel {self.config.channel} has no cache; leave past_key_values out and pass"
                    " the whole text"
                )
            return None
        if self.training and self.backbone.blocks[0].gradient_checkpointing:
            if cache is not None and cache.get_seq_length():
                raise ConfigError("no cache is read while training with gradient checkpointing; leave it out")
            return None
        if cache is None and not use_cache:
            return None
        lower = self.config.concept_layer
        return slot_cache(cache, [1] * lower + self.mixer.cached_slots(len(self.backbone.blocks) - lower))

    def _check_length(self, tokens: int) -> None:
        if tokens > self.config.max_position_embeddings:
            raise ConfigError(
                f"{tokens} tokens are more than the model's {self.config.max_position_embeddings} positions;"
                " shorten the input or generate fewer tokens"
            )


class CoCoMixForCausalLM(CoCoMixGenerationMixin, CoCoMixPreTrainedModel):
    """A language model that predicts concepts mid-stack and mixes them back in: `CoCoMixModel`, LM head and losses."""

    accepts_loss_kwargs = True  # num_items_in_batch: Trainer's losses over accumulated micro-batches add up
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}
    _tp_plan = {"backbone.embed_tokens": "embedding_rowwise", "lm_head": "colwise_gather_output"}

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.backbone, self.mixer, self.channel = parts = _build_parts(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._model = (CoCoMixModel(config, parts),)  # in a tuple: its weights are registered here, not once more
        self.post_init()
        if not self.channel.cacheable and self.generation_config is not None:
            self.generation_config.use_cache = False

    @classmethod
    def from_plain(
        cls,
        model: PreTrainedModel,
        *,
        concept_layer: int,
        num_concepts: int = 1,
        concept_top_k: int = 1,
        mixer: str = "add",
        mixer_options: dict[str, Any] | None = None,
        channel: str = "concepts",
        concept_loss_weight: float = 0.1,
        channel_options: dict[str, Any] | None = None,
        sae: Any = None,
        vector_rows: torch.Tensor | None = None,
    ) -> "CoCoMixForCausalLM":
        """A student that at first computes exactly what a plain causal LM does: the vector it mixes in is zero.

        The weights are copied and have the plain model's dtype. Dropout is 0.

        Args:
            model: a plain model of Transformers of a type in `PLAIN_FAMILIES`.
            concept_layer, num_concepts, concept_top_k, mixer_options, channel, concept_loss_weight: as in
                `CoCoMixConfig`.
            mixer: one that leaves a model as it is where its vector is zero (`Mixer.leaves_model`).
            channel_options: as in `CoCoMixConfig`; None: for `concepts` a vector without `offset`.
            sae: an autoencoder (`cocomix.sae.TopKSAE`) of this very model, of the hidden states that enter
                concept_layer; the concept logits then start as its pre-activations. None: they start at random.
            vector_rows: `[num_concepts, d_model]`, what the vector's rows start as, behind a gate that starts at zero;
                None: the rows start at zero.

        Raises:
            CocomixError: a model of another type, or one that the backbones here do not compute; a mixer that would
                change it; an autoencoder that does not fit.
        """
        settings, options = plain_settings(model), dict(mixer_options or {})
        if channel_options is None and "offset" in PREDICTORS.options(channel):
            channel_options = {"offset": False} | ({} if vector_rows is None else {"gated": True})
        MIXERS.check(mixer, options)
        PREDICTORS.choose(channel)
        upper = settings["num_hidden_layers"] - concept_layer
        mixes = MIXERS[mixer](settings["hidden_size"], **options)
        if not mixes.leaves_model(upper):
            raise ConfigError(
                f"the mixer {mixer} changes what a model computes even where its vector is zero, because its upper"
                f" {upper} blocks attend to slots that were not there; use add, gated_add, or drop_tokens with slot"
                " residual and blocks 1"
            )
        config = CoCoMixConfig(
            **settings,
            concept_layer=concept_layer,
            num_concepts=num_concepts,
            concept_top_k=concept_top_k,
            concept_loss_weight=concept_loss_weight,
            channel=channel,
            channel_options=channel_options,
            mixer=mixer,
            mixer_options=options,
        )
        student: Any = cls(config)
        student.to(device=model.device, dtype=model.dtype)
        copy_weights(model, student)
        student.tie_weights()
        student.base_name = model.name_or_path or None
        student.channel.start_at_zero()
        if sae is not None:
            student._start_head(sae)
        if vector_rows is not None:
            student._concept_predictor().start_rows(vector_rows)
        check_same(model, student)
        generation: Any = getattr(model, "generation_config", None)
        if generation is not None:
            student.generation_config = copy.deepcopy(generation)
        return student.train(model.training)

    base_name: str | None = None
    """what the plain model it was made of is called, for adapters"""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `from_pretrained`, which also loads adapters (`save_adapter`) with their base.

        Args:
            base_model: of an adapter: the plain model, or its folder or hub id, in place of the one it names.

        Raises:
            CocomixError: an adapter is damaged, or its base is another model than it was trained on.
        """
        base, config = kwargs.pop("base_model", None), kwargs.get("config")
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if not isinstance(config, CoCoMixConfig):
            place = pretrained_model_name_or_path if config is None else config
            config = CoCoMixConfig.from_pretrained(place, **hub)
        if getattr(config, "adapter", None) is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = load_adapter(cls.from_plain, pretrained_model_name_or_path, config, base, hub)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if dtype not in (None, "auto"):
            model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return (model, {"missing_keys": set()}) if kwargs.get("output_loading_info") else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `save_pretrained`: the whole model, with LoRA merged into the weights it is on."""
        if has_lora(self) and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = merged_state_dict(self)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def save_adapter(self, folder: str | Path, *, base: str | None = None) -> None:
        """Save only what was trained beside a frozen base; see `cocomix.model.adapters.save_adapter`."""
        save_adapter(self, folder, base=base)

    def freeze_rest(self, trains: str, *, rank: int = 8, alpha: float = 16.0) -> None:
        """Let only a part have gradients; see `cocomix.model.adapters.freeze_rest`."""
        freeze_rest(self, trains, rank=rank, alpha=alpha)

    def without_channel(self) -> "CoCoMixForCausalLM":
        """A copy of the same transformer that predicts nothing and mixes nothing in: as with `model.mixes` off."""
        plain: Any = type(self)(self.config.without_channel())
        plain.to(device=self.lm_head.weight.device, dtype=self.lm_head.weight.dtype)
        own = {name: tensor for name, tensor in self.state_dict().items() if name in plain.state_dict()}
        plain.load_state_dict(own)
        plain.generation_config = copy.deepcopy(self.generation_config)
        return plain.train(self.training)

    def _concept_predictor(self) -> ConceptPredictor:
        if not isinstance(self.channel, ConceptPredictor):
            raise ConfigError(
                f"the channel {self.config.channel} has no concepts that an autoencoder could start; use concepts"
            )
        return self.channel

    def _start_head(self, sae: Any) -> None:
        predictor = self._concept_predictor()
        if sae.normalisation != "standard":
            raise ConfigError(
                f"the autoencoder's normalisation is {sae.normalisation!r} and the concept head's is 'standard', so the"
                " head cannot start as its encoder; leave it out"
            )
        centre = sae.pre_bias if sae.bias_input else torch.zeros_like(sae.pre_bias)
        predictor.start_from_encoder(sae.encoder_weight, sae.latent_bias, centre)

    @property
    def model(self) -> CoCoMixModel:
        """The base model, of the modules `backbone`, `mixer` and `channel` of this one."""
        return self._model[0]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in Parts._fields and "_model" in self.__dict__:
            setattr(self.model, name, value)  # a module that was wrapped or replaced is so in the base model

    def train(self, mode: bool = True) -> "CoCoMixForCausalLM":
        self.model.training = mode
        return super().train(mode)

    @hidden_from_trainer("concept_labels", "concept_label_weights")
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
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        concept_label_weights: torch.Tensor | None = None,
        **kwargs: Any,
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
            output_attentions: return the attention weights of each block.
            return_dict: False returns a plain tuple of what is not None.
            num_items_in_batch: targets of all micro-batches of a step; `loss` is then this pass's part of their mean,
                by its share of the targets.
            concept_label_weights: 0 or more, `[batch, seq, K_attr]`: the concept loss is the sum of the labels' losses,
                each times its weight, over the number of labels.
            kwargs: `shift_labels`: next-token labels `[batch, seq]` that are shifted already, instead of `labels`;
                `z_loss`: weight of the mean of `z_losses` that is added to `lm_loss`.

        Raises:
            ConfigError: more tokens than the model has positions, or an argument that cannot be used.
        """
        padding = shown_padding(attention_mask)
        targets = _targets(labels, kwargs.pop("shift_labels", None), padding)
        if concept_labels is not None and padding is not None:
            concept_labels = concept_labels.masked_fill(~padding.bool().unsqueeze(-1), -100)
        skip_logits = skip_logits and targets is not None and plain_linear(self.lm_head)
        z_weight = kwargs.pop("z_loss", 0.0)
        logits_to_keep = kwargs.pop("num_logits_to_keep", logits_to_keep)  # its first name

        output = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            cache=cache,
            fused_labels=concept_labels if skip_logits else None,
            fused_weights=concept_label_weights if skip_logits else None,
            **kwargs,
        )
        logits = None
        if skip_logits and targets is not None:
            lm_loss = self._fused_lm_loss(output.last_hidden_state, targets, z_weight)
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            # Contiguous: of a batch of slices torch would multiply each by a copy of the weight of its own.
            logits = apply_linear(self.lm_head, output.last_hidden_state[:, kept].contiguous())
            if self.config.logit_cap is not None:
                logits = self.config.logit_cap * torch.tanh(logits / self.config.logit_cap)
            lm_loss = None if targets is None else _lm_loss(logits, targets, z_weight)
        concepts_loss = None
        if concept_labels is not None:
            concepts_loss = self._concept_loss(output, concept_labels, concept_label_weights)
        loss = self._total_loss(lm_loss, concepts_loss, output.channel_loss)
        if num_items_in_batch is not None and loss is not None and targets is not None:
            loss = loss * (targets != -100).sum() / num_items_in_batch
        causal = CoCoMixOutput(
            loss=loss,
            logits=logits,
            lm_loss=lm_loss,
            concept_loss=concepts_loss,
            concept_logits=output.concept_logits,
            predicted_hidden=output.predicted_hidden,
            channel_loss=output.channel_loss,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cache=output.cache,
        )
        keep_dict = self.config.return_dict if return_dict is None else return_dict
        return causal if keep_dict else causal.to_tuple()

    def hidden_state(self, input_ids: torch.Tensor, *, top: bool) -> torch.Tensor:
        """`CoCoMixModel.hidden_state`."""
        return self.model.hidden_state(input_ids, top=top)

    def steer(self, steering: Steering) -> AbstractContextManager[None]:
        """A context in which forward passes and generation have their predicted concepts changed.

        `with model.steer({123: Amplify(4.0), 7: Ablate(start=10)}): model.generate(...)`, or a list with one mapping
        per row. See `cocomix.model.steered`.

        Raises:
            CocomixError: on entering, if the model does not predict and use concepts, or has no such concept.
        """
        return steered(self, steering)

    def replace_vector(self, replacement: VectorReplacement) -> AbstractContextManager[None]:
        """A context in which forward passes and generation mix in other vectors than the model predicts.

        `with model.replace_vector(ZeroVector()): ...`. See `cocomix.model.vector_replaced`.

        Raises:
            CocomixError: on entering, if the model mixes no vector in.
        """
        return vector_replaced(self, replacement)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]

    def _fused_lm_loss(self, hidden: torch.Tensor, targets: torch.Tensor, z_weight: float) -> torch.Tensor:
        """Mean next-token cross entropy from normed hidden states `[batch, seq, d_model]`, without their logits."""
        weight: Any = self.lm_head.weight  # a module of another type would not have come here
        bias: Any = self.lm_head.bias
        hidden = hidden[:, : targets.shape[1]].flatten(0, 1)
        options: dict[str, Any] = {"cap": self.config.logit_cap, "z_weight": z_weight}
        return linear_losses(hidden, weight, bias, targets.reshape(-1, 1), **options).mean

    def _concept_loss(
        self, output: CoCoMixModelOutput, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        if output.concept_losses is not None:
            return output.concept_losses.mean
        if output.concept_logits is None:
            raise ConfigError(f"the channel {self.config.channel} predicts no concepts; leave concept_labels out")
        return concept_loss(output.concept_logits, labels, weights)

    def _total_loss(
        self, lm_loss: torch.Tensor | None, concepts_loss: torch.Tensor | None, channel_loss: torch.Tensor | None
    ) -> torch.Tensor | None:
        """lm_loss + channel_loss + lambda * concept_loss, of those there are; channel_loss counts with lm_loss only."""
        weighted = None if concepts_loss is None else self.config.concept_loss_weight * concepts_loss
        if lm_loss is None:
            return weighted
        return sum((loss for loss in (channel_loss, weighted) if loss is not None), lm_loss)


def _list_if(requested: bool | None, default: bool | None) -> list[torch.Tensor] | None:
    """A list to collect tensors in, or None where they are not asked for."""
    return [] if (default if requested is None else requested) else None


def _targets(
    labels: torch.Tensor | None, shift_labels: torch.Tensor | None, padding: torch.Tensor | None
) -> torch.Tensor | None:
    """Next-token targets of the first positions, `[batch, seq - 1 or seq]`.

    -100 wherever the target or the position that predicts it is padding.
    """
    if labels is None or shift_labels is not None:
        return shift_labels
    if padding is not None:
        real = padding.bool()
        labels = labels.masked_fill(~torch.cat([real[:, :1], real[:, 1:] & real[:, :-1]], dim=1), -100)
    return labels[:, 1:]


def _lm_loss(logits: torch.Tensor, targets: torch.Tensor, z_weight: float = 0.0) -> torch.Tensor:
    """Mean cross entropy of logits `[batch, seq, vocab]` and the targets of the first of them, in float32 or better."""
    if logits.shape[1] < targets.shape[1]:
        raise ConfigError("a loss needs the logits of all positions; leave logits_to_keep or the labels out")
    wide = logits[:, : targets.shape[1]].flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    flat = targets.flatten()
    summed = F.cross_entropy(wide, flat, ignore_index=-100, reduction="sum")
    if z_weight:
        summed = summed + z_weight * (z_losses(wide) * (flat != -100)).sum()
    return summed / (flat != -100).sum().clamp_min(1)


def z_losses(logits: torch.Tensor) -> torch.Tensor:
    """z-loss of each position: the squared logarithm of the softmax's normaliser, in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1).square()


def _positions(
    given: torch.Tensor | None, attention_mask: torch.Tensor | None, past: int, new: int, device: torch.device
) -> torch.Tensor:
    """Positions of the new tokens, `[batch or 1, new]`: as given, else counting unpadded tokens, else counting all."""
    if given is not None:
        given = given[:, -new:]
        if attention_mask is None and not torch.compiler.is_compiling() and bool((given.diff() < 0).any()):
            raise ConfigError(
                "position_ids start again inside a row, as where several texts are packed into one, and attention would"
                " cross them; give each text a row of its own (TRL: packing and padding_free off)"
            )
        return given
    if attention_mask is None:
        return torch.arange(past, past + new, device=device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -new:]


def shown_padding(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask, or None where it hides nothing; a compiled graph does not look and keeps it."""
    if attention_mask is None or torch.compiler.is_compiling():
        return attention_mask
    return None if bool(attention_mask.all()) else attention_mask
