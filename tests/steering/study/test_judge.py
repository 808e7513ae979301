"""What is found in texts, against loops over tokens."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cocomix.steering.study.concepts import derangement
from cocomix.steering.study.judge import distinct, leak, repeated
from tests.helpers.steering_study import VOCAB, C, active_at, models, study_context


@pytest.mark.parametrize("n", [1, 2, 4])
def test_diversity_counts_ngrams(n: int) -> None:
    texts = torch.randint(0, 3, (20, 12), generator=torch.Generator().manual_seed(0))
    for row, different, again in zip(texts.tolist(), distinct(texts, n), repeated(texts, n), strict=True):
        seen: Counter[str] = Counter()
        repeats = 0
        for start in range(len(row) - n + 1):
            gram = str(row[start : start + n])
            repeats += gram in seen
            seen[gram] += 1
        assert different == len(seen) / seen.total() and again == pytest.approx(repeats / seen.total())


def test_a_text_too_short_for_an_ngram_repeats_none() -> None:
    assert repeated(torch.ones(2, 3, dtype=torch.long), 4).tolist() == [0, 0]


def test_leak_is_the_movement_of_all_others() -> None:
    generator = torch.Generator().manual_seed(0)
    shares, base = torch.rand(3, 7, generator=generator).double(), torch.rand(7, generator=generator).double()
    own = torch.tensor([2, 0, 6])
    for group, found in enumerate(leak(shares, base, own).tolist()):
        others = [j for j in range(7) if j != own[group]]
        moved = sum(abs(float(shares[group, j]) - float(base[j])) for j in others)
        assert found == pytest.approx(moved / sum(float(base[j]) for j in others))
    assert leak(base.expand(3, 7), base, own).tolist() == [0, 0, 0]


@torch.no_grad()
def test_the_judge_reads_token_by_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.steering.study.judge.ROWS", 4)  # so that the six texts are read in two goes
    context = study_context(tmp_path)
    texts = torch.randint(0, VOCAB, (6, 11), generator=torch.Generator().manual_seed(2))
    texts[2, 5:] = 11  # a word said again and again
    found, start = context.judge.read(texts), context.prompts.shape[1]
    assert found.shares.shape == (3, C) and found.shares.sum() > 1
    for group in range(3):
        rows = texts[2 * group : 2 * group + 2].tolist()
        active = [here for row in rows for here in active_at(row)[start:]]
        counts = Counter(concept for here in active for concept in here)
        assert found.shares[group].tolist() == pytest.approx([counts[i] / len(active) for i in range(C)])
        written = [token for row in rows for token in row[start:]]
        for place, one in enumerate(context.concepts):
            share = sum(token in one.words for token in written) / len(written)
            assert found.words[group, place] == pytest.approx(share)
            share = sum(token in one.follow for token in written) / len(written)
            assert found.follow[group, place] == pytest.approx(share)
        losses = []
        for row in rows:
            for at in range(start, len(row)):
                logits = models()["reader"](torch.tensor([row[:at]])).logits[0, -1]
                losses.append(-float(F.log_softmax(logits, -1)[row[at]]))
        assert found.loss[group] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.repeated4[1] == pytest.approx(0.5 * 2 / 3) and found.distinct2[1] < found.distinct2[0]
    assert found.words[1, 1] >= 0.5


def test_a_derangement_leaves_nothing_in_its_place() -> None:
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        order = derangement(4, generator)
        assert sorted(order) == [0, 1, 2, 3] and all(i != j for i, j in enumerate(order))
        seen.add(tuple(order))
    assert len(seen) == round(math.factorial(4) / math.e)
