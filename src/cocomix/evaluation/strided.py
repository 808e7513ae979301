"""Perplexity with a sliding window: every token but the first is scored once, with a long context before it.

Windows side by side give a token on average half a window of context, and the first ones of each window almost none;
with a stride s each scored token has at least seq_len - s tokens before it, at seq_len / s times the cost.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F

from cocomix.data.shards import TokenShards
from cocomix.utils.errors import CocomixError
from cocomix.utils.precision import autocast


@torch.no_grad()
def strided_perplexity(
    model: Any, shards: TokenShards, *, seq_len: int, stride: int, batch_size: int, precision: str = "fp32"
) -> dict[str, float]:
    """exp of the mean next-token loss over all tokens of the shards but the first.

    Args:
        model: any causal LM whose output has `.logits` `[batch, seq, vocab]`; it is left in its mode.
        stride: tokens a window moves, 1 to seq_len - 1.
        precision: "fp32", or "bf16" for autocast.

    Returns:
        `loss` (nats a token), `perplexity`, `tokens` (targets counted).

    Raises:
        CocomixError: a stride that leaves no context, or a single token.
    """
    if not 1 <= stride < seq_len:
        raise CocomixError(f"a stride of {stride} does not fit windows of {seq_len}; choose 1 to {seq_len - 1}")
    if shards.n_tokens < 2:
        raise CocomixError(f"{shards.folder} holds fewer than two tokens, so there is nothing to score; add text")
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    jobs = _windows(shards.n_tokens, seq_len, stride)
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        width = max(end - begin for begin, _, end in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        counted = torch.zeros(len(part), width - 1, dtype=torch.bool)
        for row, (begin, first, end) in enumerate(part):
            ids[row, : end - begin] = torch.from_numpy(shards.span(begin, end))
            counted[row, first - begin - 1 : end - begin - 1] = True
        ids, counted = ids.to(device), counted.to(device)
        with autocast(device, precision):  # rows that are shorter are filled on the right, where nothing looks
            logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="none")
        total += losses.double().sum().cpu()
    count = shards.n_tokens - 1
    loss = float(total) / count
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": count}


def _windows(n_tokens: int, seq_len: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first token scored, end) of each window; the first one scores all its tokens but one."""
    end = min(seq_len, n_tokens)
    windows = [(0, 1, end)]
    while end < n_tokens:
        first, end = end, min(end + stride, n_tokens)
        windows.append((max(0, end - seq_len), first, end))
    return windows
