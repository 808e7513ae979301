"""A Llama of toy size."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama(vocab_size: int, *, positions: int = 128, seed: int = 0, width: int = 16) -> LlamaForCausalLM:
    """Grouped queries, tied embeddings, three blocks; weights large enough to prefer some tokens."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.3,
        )
    )
