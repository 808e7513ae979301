"""Small students of every mixer and predictor, and their losses, for tests of what is done to their layers."""

from typing import Any

import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import MIXERS, PREDICTORS

VOCAB, C, T = 40, 24, 12
MIXER_OPTIONS = {"every": {"every": 3}, "drop_tokens": {"blocks": 1}}
CHANNEL_OPTIONS = {"hidden": {"target_size": 12}, "ncp": {"chunk": 3, "segments": 2, "codes": 5, "layers": 1}}
PAIRS = [(channel, mixer) for channel in PREDICTORS for mixer in MIXERS]


def student(channel: str = "concepts", mixer: str = "interleave", backbone: str = "gpt2", **changes: Any):
    """A student of 16 dimensions, in evaluation mode and float32; the same weights each time."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if backbone == "llama" else None,
        "max_position_embeddings": 24,
        "concept_layer": 1,
        "num_concepts": C,
        "concept_top_k": 5,
        "initializer_range": 0.2,
        "channel": channel,
        "channel_options": CHANNEL_OPTIONS.get(channel),
        "mixer": mixer,
        "mixer_options": MIXER_OPTIONS.get(mixer),
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, **{**settings, **changes})).eval()


def batch(channel: str = "concepts") -> dict[str, torch.Tensor]:
    """Two windows with their labels, and concept labels where the student predicts concepts."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (2, T), generator=generator)
    concepts = {"concept_labels": torch.randint(0, C, (2, T, 3), generator=generator)} if channel == "concepts" else {}
    return {"input_ids": ids, "labels": ids, **concepts}


def loss(model: Any, channel: str = "concepts", **options: Any) -> torch.Tensor:
    """The student's loss; of a predicted hidden state its mean square is part of it."""
    output = model(**batch(channel), **options)
    return output.loss if output.predicted_hidden is None else output.loss + output.predicted_hidden.square().mean()
