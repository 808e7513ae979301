"""The concept loss."""

import torch


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
