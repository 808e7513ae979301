"""How varied generated texts are. Steering too far often ends in a word said again and again, which a language model
finds likely: perplexity alone would praise it."""

import torch


def distinct(texts: torch.Tensor, n: int) -> torch.Tensor:
    """distinct-n of each text: different n-grams / n-grams; 1 says that none comes twice. float64 `[rows]`.

    Args:
        texts: int64 `[rows, seq]`.
    """
    return torch.tensor([len(set(row)) / max(1, len(row)) for row in _ngrams(texts, n)], dtype=torch.float64)


def repeated(texts: torch.Tensor, n: int) -> torch.Tensor:
    """Share of each text's n-grams that came before in it, 1 - distinct-n; 0 where there is none. float64 `[rows]`."""
    return 1 - distinct(texts, n) if texts.shape[1] >= n else torch.zeros(len(texts), dtype=torch.float64)


def _ngrams(texts: torch.Tensor, n: int) -> list[list[tuple[int, ...]]]:
    return [[tuple(row[start : start + n]) for start in range(len(row) - n + 1)] for row in texts.tolist()]
