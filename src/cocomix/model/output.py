"""What a forward pass returns."""

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.utils.generic import ModelOutput


@dataclass
class CoCoMixOutput(ModelOutput):
    """Output of `CoCoMixForCausalLM`.

    Attributes:
        loss: lm_loss + concept_loss_weight * concept_loss, of those that were asked for, + channel_loss; a scalar.
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
