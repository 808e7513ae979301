"""Sampling whose chance is fixed beforehand: a row's draws depend on nothing but the seed, its number and the step.

So a row gets the same text alone and in any batch, and what is steered and what is not share their chance. Token i is
the one with the least E_i / p_i, where the E are independent standard exponentials: it is drawn with probability p_i,
and a small change of p changes it seldom.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cocomix.utils.errors import CocomixError


class Noise:
    """The draws of `rows` texts over `vocab_size` tokens.

    Args:
        key: what the draws depend on, e.g. a seed and the number of a sample; no number below 0.
    """

    def __init__(self, key: Sequence[int], rows: int, vocab_size: int) -> None:
        self.key, self.rows, self.vocab_size = tuple(key), rows, vocab_size

    def at(self, step: int) -> torch.Tensor:
        """The E of all rows at a step, float32 `[rows, vocab_size]`."""
        generator = np.random.default_rng((*self.key, step))
        return torch.from_numpy(generator.standard_exponential((self.rows, self.vocab_size), dtype=np.float32))


@torch.no_grad()
def continued(model: Any, prompts: torch.Tensor, new_tokens: int, noise: Noise) -> torch.Tensor:
    """Prompts int64 `[rows, seq]` with `new_tokens` sampled ones at temperature 1, int64 `[rows, seq + new_tokens]`.

    End-of-text is a token like any other, so that all texts have one length.

    Args:
        model: any causal LM in evaluation mode; only the first `noise.vocab_size` tokens are drawn.

    Raises:
        CocomixError: the texts would be longer than the model can take.
    """
    length = prompts.shape[1] + new_tokens
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise CocomixError(
            f"prompt and continuation make {length} tokens and the model has {positions} positions; lower --tokens by"
            f" {length - positions}"
        )
    takes = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in takes else "past_key_values"  # the newer name and the older
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    text, cache = prompts.to(model.device), None
    for step in range(new_tokens):
        given = text if cache is None else text[:, -1:]
        output = model(input_ids=given, use_cache=True, **{name: cache}, **last)
        cache = getattr(output, name)
        logits = output.logits[:, -1, : noise.vocab_size].float()
        draws = noise.at(step).to(logits.device).clamp_min(torch.finfo(torch.float32).tiny)
        text = torch.cat([text, (logits - draws.log()).argmax(-1, keepdim=True)], 1)
    return text
