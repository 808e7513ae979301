"""Small models to steer, and what tests of steering share."""

import torch
from torch import nn

from cocomix import CoCoMixConfig, CoCoMixForCausalLM

VOCAB, C, K, T = 37, 24, 5, 9
MIXERS = ["interleave", "add", "keys_values", "every", "drop_tokens"]


def build(backbone: str = "gpt2", mixer: str = "interleave") -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2 if backbone == "llama" else None,
        max_position_embeddings=20,
        backbone=backbone,
        mixer=mixer,
        concept_layer=2,
        num_concepts=C,
        concept_top_k=K,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return CoCoMixForCausalLM(config).double().eval()


def tokens(batch: int = 3, length: int = T) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def padded(ids: torch.Tensor, side: str | None) -> torch.Tensor:
    """A mask of `ids` with rows of several lengths."""
    mask = torch.ones_like(ids)
    if side is not None:
        mask[0, :3], mask[-1, :1] = 0, 0
    return mask.flip(1) if side == "right" else mask


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1)


def untouched(model: nn.Module) -> bool:
    """Whether nothing is hooked to any part of the model."""
    return not any(
        one._forward_hooks
        or one._forward_pre_hooks
        or one._forward_hooks_with_kwargs
        or one._forward_pre_hooks_with_kwargs
        or one._forward_hooks_always_called
        for one in model.modules()
    )
