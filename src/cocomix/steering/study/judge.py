"""What is found in generated texts, by models that had no part in writing them.

The teacher reads each text again, unsteered, and an SAE of it says which concepts are active; another language model,
which is neither steered nor the judge of concepts, says how likely the text is. Only generated positions count, and
every text is read after the plain prompt, whatever led to it.

Fluency is measured twice, because steering too far often ends in one repeated word, which a language model finds
likely: by the loss, and by how varied the text is (`distinct`, `repeated`).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from cocomix.model.teacher import hidden_at
from cocomix.sae.sae import TopKSAE
from cocomix.steering.study.concepts import Concept
from cocomix.utils.env import as_float64

ROWS = 64
"""Texts read at a time."""


def distinct(texts: torch.Tensor, n: int) -> torch.Tensor:
    """distinct-n of each text: different n-grams / n-grams; 1 says that none comes twice. float64 `[rows]`.

    Args:
        texts: int64 `[rows, seq]`.
    """
    return torch.tensor([len(set(row)) / max(1, len(row)) for row in _ngrams(texts, n)], dtype=torch.float64)


def repeated(texts: torch.Tensor, n: int) -> torch.Tensor:
    """Share of each text's n-grams that came before in it, 1 - distinct-n; 0 where there is none. float64 `[rows]`."""
    return 1 - distinct(texts, n) if texts.shape[1] >= n else torch.zeros(len(texts), dtype=torch.float64)


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Next-token loss of each target, nats, float64 `[rows, seq]`.

    Args:
        logits: `[rows, seq, vocab]`, of the position before each target.
        targets: int64 `[rows, seq]`.
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return as_float64(losses).view_as(targets)


def leak(shares: torch.Tensor, unsteered: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
    """How far all other concepts moved, as a share of what they were: sum_j |s_j - u_j| / sum_j u_j, j not steered.

    It is not 0 for two samples of unsteered text either; the value there is its noise floor.

    Args:
        shares: s, of each group's positions, `[groups, C]`.
        unsteered: u, `[C]`.
        concepts: the steered concept, left out of each group, int64 `[groups]`.

    Returns:
        float64 `[groups]`.
    """
    differences = (shares - unsteered).abs()
    moved, base = (
        values.sum(-1) - values.gather(-1, concepts[:, None])[:, 0]
        for values in (differences, unsteered.expand_as(shares))
    )
    return moved / base.clamp_min(torch.finfo(torch.double).tiny)


class TextMetrics(NamedTuple):
    """Figures of texts in groups, one group for each steered concept; float64."""

    shares: torch.Tensor
    """share of a group's positions at which the judging SAE has each latent active, `[groups, latents]`"""
    words: torch.Tensor
    """share of a group's tokens that are distinguishing tokens of each chosen concept, `[groups, concepts]`"""
    follow: torch.Tensor
    """the same of the tokens that follow it, `[groups, concepts]`"""
    loss: torch.Tensor
    """mean next-token loss under the independent model, nats, `[groups]`"""
    distinct1: torch.Tensor
    """mean distinct-1 of the texts, `[groups]`"""
    distinct2: torch.Tensor
    """mean distinct-2, `[groups]`"""
    repeated4: torch.Tensor
    """mean share of 4-grams that came before in their text, `[groups]`"""


class Judge:
    """Reads texts.

    Args:
        layer: the teacher's block (0-based) after which the SAE reads.
        reader: the independent model.
        prompt_tokens: tokens of each text that are not counted.
        latents: the SAE's latents that stand for the concepts, int64 `[concepts]`; None: those of their numbers.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        sae: TopKSAE,
        layer: int,
        reader: PreTrainedModel,
        concepts: list[Concept],
        prompt_tokens: int,
        latents: torch.Tensor | None = None,
    ) -> None:
        self.latents = torch.tensor([concept.concept for concept in concepts]) if latents is None else latents
        self.teacher, self.sae, self.layer, self.reader = teacher, sae, layer, reader
        self.concepts, self.prompt_tokens = concepts, prompt_tokens

    @torch.no_grad()
    def read(self, texts: torch.Tensor) -> TextMetrics:
        """Figures of texts int64 `[groups * rows, seq]`, the rows of a group together."""
        groups, new_tokens = len(self.concepts), texts.shape[1] - self.prompt_tokens
        rows_each = len(texts) // groups
        group = torch.arange(groups).repeat_interleave(rows_each)
        counts = torch.zeros(groups, self.sae.n_latents, dtype=torch.double)
        losses = torch.zeros(len(texts), dtype=torch.double)
        for start in range(0, len(texts), ROWS):
            rows = slice(start, start + ROWS)
            counts += self._active(texts[rows], group[rows], groups)
            losses[rows] = self._losses(texts[rows])
        written = texts[:, self.prompt_tokens :].cpu()
        return TextMetrics(
            shares=counts / (rows_each * new_tokens),
            words=_shares(written.reshape(groups, -1), [concept.words for concept in self.concepts]),
            follow=_shares(written.reshape(groups, -1), [concept.follow for concept in self.concepts]),
            loss=losses.view(groups, rows_each).mean(-1),
            distinct1=distinct(written, 1).view(groups, rows_each).mean(-1),
            distinct2=distinct(written, 2).view(groups, rows_each).mean(-1),
            repeated4=repeated(written, 4).view(groups, rows_each).mean(-1),
        )

    def _active(self, texts: torch.Tensor, group: torch.Tensor, groups: int) -> torch.Tensor:
        """Positions at which each concept is active in each group, `[groups, C]`."""
        hidden = hidden_at(self.teacher, texts.to(self.teacher.device), self.layer)
        latents = self.sae.encode(hidden[:, self.prompt_tokens :])
        on = (latents.values > 0).cpu()
        place = latents.ids.cpu() + self.sae.n_latents * group[:, None, None]
        counts = torch.bincount(place[on], minlength=groups * self.sae.n_latents)
        return counts.view(groups, -1).double()

    def _losses(self, texts: torch.Tensor) -> torch.Tensor:
        """Mean loss of each text's generated tokens, `[rows]`."""
        ids = texts.to(self.reader.device)
        model: Any = self.reader
        logits = model(input_ids=ids, use_cache=False).logits[:, self.prompt_tokens - 1 : -1]
        return token_losses(logits, ids[:, self.prompt_tokens :]).mean(-1).cpu()


def _ngrams(texts: torch.Tensor, n: int) -> list[list[tuple[int, ...]]]:
    return [[tuple(row[start : start + n]) for start in range(len(row) - n + 1)] for row in texts.tolist()]


def _shares(written: torch.Tensor, sets: list[list[int]]) -> torch.Tensor:
    """Share of tokens `[groups, tokens]` that are in each set, `[groups, sets]`."""
    members = [torch.isin(written, torch.tensor(tokens, dtype=torch.long)) for tokens in sets]
    return torch.stack([member.double().mean(-1) for member in members], dim=-1)
