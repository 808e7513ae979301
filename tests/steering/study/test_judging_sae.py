"""Another autoencoder as the judge: which latent stands for a concept, against numpy position by position."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.sae import TopKSAE
from cocomix.steering.study.concepts import spread_windows
from cocomix.steering.study.judging_sae import JudgingSae, SaeAt, active_latents, match_latents
from cocomix.steering.study.methods import Unsteered
from tests.helpers.steering_study import LAYER, C, T, models, study_context

OTHER = 2
"""The block that the other autoencoder reads."""


def other_sae() -> TopKSAE:
    torch.manual_seed(5)
    return TopKSAE(16, 12, 3).double()


@torch.no_grad()
def active(sae: TopKSAE, layer: int, ids: torch.Tensor) -> np.ndarray:
    """Which latents are active at each position, `[positions, latents]`, by the SAE's dense form."""
    hidden = models()["teacher"](ids, output_hidden_states=True).hidden_states[layer + 1].flatten(0, 1)
    return np.array([[x > 0 for x in sae.encode_dense(h).tolist()] for h in hidden], dtype=float)


def test_latents_are_matched_by_correlation(tmp_path: Path) -> None:
    context, other = study_context(tmp_path), other_sae()
    concepts, teacher = [3, 17, 8, 0, 29], models()["teacher"]
    found = match_latents(teacher, SaeAt(context.sae, LAYER), SaeAt(other, OTHER), concepts, context.train, T)
    ids = spread_windows(context.train, 128, T)
    first = context.train.special.first_position
    keep = (torch.arange(T) >= first).repeat(len(ids)).numpy()
    ours, theirs = active(context.sae, LAYER, ids)[keep], active(other, OTHER, ids)[keep]
    for concept, latent, correlation in zip(concepts, found.latents.tolist(), found.correlations.tolist(), strict=True):
        with np.errstate(invalid="ignore"):
            each = [np.nan_to_num(np.corrcoef(ours[:, concept], column)[0, 1]) for column in theirs.T]
        assert correlation == pytest.approx(max(each), abs=1e-9) and each[latent] == pytest.approx(correlation)
    assert found.correlations.max() > 0.1


def test_an_autoencoder_agrees_with_itself(tmp_path: Path) -> None:
    context = study_context(tmp_path)
    same = SaeAt(context.sae, LAYER)
    shares = active(context.sae, LAYER, spread_windows(context.train, 128, T)).mean(0)
    there = [i for i in range(C) if 0 < shares[i] < 1]
    found = match_latents(models()["teacher"], same, same, there, context.train, T)
    assert found.correlations.tolist() == pytest.approx([1] * len(there)) and found.latents.tolist() == there


def test_a_latent_counts_where_it_is_positive() -> None:
    sae = TopKSAE(4, 6, 2)
    latents = sae.encode(torch.zeros(1, 4))._replace(
        ids=torch.tensor([[1, 4], [0, 5]]), values=torch.tensor([[0.5, 0.0], [2.0, -1.0]])
    )
    assert active_latents(latents, 6).tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


@torch.no_grad()
def test_it_judges_by_its_own_latents(tmp_path: Path) -> None:
    context, other = study_context(tmp_path), other_sae()
    latents = torch.tensor([7, 2, 7])
    context.judging_sae = JudgingSae(other, OTHER, latents)
    result = Unsteered().measure(context, None, lambda *_: None)
    texts = context.subject("student").texts(context.prompt_rows, sample=1)
    start, (dose,) = context.prompts.shape[1], result.at
    for group in range(3):
        on = active(other, OTHER, texts[2 * group : 2 * group + 2]).reshape(2, -1, 12)[:, start:].mean((0, 1))
        assert dose.presence[group] == pytest.approx([on[7], on[2], on[7]], abs=1e-6)
