"""k-sparse probing: the properties of texts, the choice of latents, the regression, and the whole."""

import numpy as np
import pytest

from cocomix.data import Document
from cocomix.sae.probing import (
    TEXT_PROPERTIES,
    balanced_positions,
    dense_columns,
    logistic_accuracy,
    most_different,
    probe,
)


def _asked(name: str, text: str, **fields: object) -> dict[str, int]:
    """Answers by the text read so far, where the property is asked."""
    answers = TEXT_PROPERTIES[name]().answers(Document("a", text, **fields))  # type: ignore[arg-type]
    assert answers.shape == (len(text) + 1,)
    return {text[:place]: int(answer) for place, answer in enumerate(answers) if answer >= 0}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("next word capitalised", "the Road, a 3", {"the": 1, "the Road,": 0}),
        ("inside a quotation", 'a "b" c\n\n', {"a": 0, 'a "b': 1, 'a "b" c': 0}),
        ("inside a quotation", "“b\n\nc”", {"“b": 1, "“b\n\nc": 0}),
        ("inside a number", "b 1,2", {"b": 0, "b 1": 1, "b 1,": 1, "b 1,2": 1}),
        ("inside a question", "Who is it? He is it.", {"Who is it": 1, "Who is it? He is it": 0}),
        ("sentence ends", "we go. It", {"we": 0, "we go": 1, "we go. It": 0}),
    ],
)
def test_a_property_is_answered_by_the_text(name: str, text: str, expected: dict[str, int]) -> None:
    assert _asked(name, text) == expected


def test_the_year_comes_from_the_date_or_the_name() -> None:
    assert _asked("from 1900 on", "a b", meta={"date": "1901-12-03"}) == {"a": 1, "a b": 1}
    answers = TEXT_PROPERTIES["from 1900 on"]()
    assert answers.answers(Document("1790-Washington", "a")).tolist() == [-1, 0]
    assert answers.answers(Document("a", "b")).tolist() == [-1, -1]


def test_halves_are_balanced_and_share_no_document() -> None:
    generator = np.random.default_rng(0)
    answers, documents = generator.integers(-1, 2, 4000), generator.integers(0, 20, 4000)
    halves = balanced_positions(answers, documents, 300, generator)
    assert halves is not None
    assert not set(documents[halves[0]]) & set(documents[halves[1]])
    for half in halves:
        assert len(half) == 600 == len(set(half.tolist())) and answers[half].sum() == 300
    assert balanced_positions(np.ones(10), np.arange(10), 5, generator) is None


def test_latents_are_chosen_like_a_loop_chooses_them() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=(200, 4)).astype(np.float32)
    ids = np.stack([generator.choice(30, 4, replace=False) for _ in range(200)])
    answers = generator.integers(0, 2, 200)
    means = np.zeros((2, 30))
    for position in range(200):
        for value, latent in zip(values[position], ids[position], strict=True):
            means[answers[position], latent] += max(float(value), 0) / (answers == answers[position]).sum()
    expected = sorted(range(30), key=lambda latent: -abs(means[1, latent] - means[0, latent]))[:5]
    chosen = most_different(values, ids, answers, 5, 30)
    assert chosen.tolist() == expected
    columns = dense_columns(values, ids, chosen)
    for position in range(200):
        active = dict(zip(ids[position].tolist(), values[position].tolist(), strict=True))
        assert columns[position].tolist() == pytest.approx([max(active.get(latent, 0), 0) for latent in expected])


def test_the_regression_is_scikit_learns() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(400, 6)) * [1, 5, 0.1, 1, 1, 1]
    answers = (inputs @ [1, 0.2, 5, 0, 0, 0] + generator.normal(size=400) > 0.5).astype(int)
    train, test = inputs[:200], inputs[200:]
    mean, scale = train.mean(0), train.std(0)
    other = linear_model.LogisticRegression(C=1 / (1e-2 * 200), tol=1e-8).fit((train - mean) / scale, answers[:200])
    expected = other.score((test - mean) / scale, answers[200:])
    assert logistic_accuracy(train, answers[:200], test, answers[200:]) == pytest.approx(expected, abs=0.01)


def test_one_latent_tells_a_property_that_it_stands_for_and_none_tells_a_coin() -> None:
    generator = np.random.default_rng(3)
    documents = generator.integers(0, 30, 6000)
    answers = generator.integers(0, 2, 6000)
    ids = np.stack([generator.choice(np.arange(1, 50), 4, replace=False) for _ in range(6000)])
    ids[answers == 1, 0] = 0
    values = np.abs(generator.normal(size=ids.shape)) + 1
    hidden = generator.normal(size=(6000, 8))
    told = probe(values, ids, hidden, answers, documents, n_latents=50, ks=(1, 3))
    assert told is not None and told["k=1"] == 1.0 and told["positions"] == 2000
    coin = probe(values, ids, hidden, generator.integers(0, 2, 6000), documents, n_latents=50, ks=(1, 3))
    assert coin is not None and all(abs(coin[name] - 0.5) < 0.06 for name in ("k=1", "k=3", "hidden"))
