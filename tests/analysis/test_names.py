"""Names of planted concepts, strongest passages against a loop, and what is kept on disk."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.analysis import (
    ConceptName,
    FoundNames,
    Occurrences,
    edit_name,
    name_concepts,
    observe,
    read_names,
    write_found,
)
from cocomix.analysis.naming import AFTER, BEFORE, EDITED, EDITS_LOCK, FOUND, STABLE, TokenScore, chosen_words
from cocomix.data import write_shards
from cocomix.model import hidden_at
from cocomix.utils.errors import CocomixError
from tests.helpers.labeled_tokens import SEQ, autoencoder, corpus, teacher

V, WINDOWS, T = 50, 60, 32
PLANTED, BEFORE_IT, SPARSE, SILENT, RANDOM = 0, 1, 2, 3, range(4, 44)


def decode(ids: Sequence[int]) -> str:
    return "".join(f" w{one}" for one in ids)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, concepts and values: one concept on every token 7, one before every token 9, one at three places."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, V, (WINDOWS, T))
    concepts = np.tile(np.arange(len(RANDOM) + 4), (WINDOWS, T, 1))
    values = np.zeros(concepts.shape)
    values[..., PLANTED] = ids == 7
    values[:, :-1, BEFORE_IT] = ids[:, 1:] == 9
    values[0, :3, SPARSE] = 1
    values[..., 4:] = rng.random((WINDOWS, T, len(RANDOM))) < 0.1
    return ids, concepts, values


def seen(ids: np.ndarray, concepts: np.ndarray, values: np.ndarray, passages: int = 5) -> Occurrences:
    made = Occurrences(concepts.shape[-1], V, passages=passages)
    for start in range(0, len(ids), 7):
        part = slice(start, start + 7)
        made.add(np.arange(len(ids))[part], ids[part], concepts[part], values[part])
    return made


def test_planted_concepts_get_their_token_and_random_ones_get_none() -> None:
    names = name_concepts(seen(*planted()), decode)
    one = names[PLANTED]
    assert (one.name, one.kind, one.source) == ("w7", "token", "tokens") and one.stability is not None
    assert one.stability > 0.9 > STABLE
    assert (names[BEFORE_IT].name, names[BEFORE_IT].kind) == ("before w9", "next")
    assert names[SPARSE].name is None and "only 3 positions" in names[SPARSE].why
    assert names[SILENT].name is None and "never active" in names[SILENT].why
    for concept in RANDOM:
        assert names[concept].name is None and "disagree" in names[concept].why, names[concept]


def test_occurrences_and_coverage_are_counted() -> None:
    ids, concepts, values = planted()
    values[..., PLANTED] += ids == 8
    values[..., PLANTED] += (ids == 11) & (np.arange(T) < 2)
    names = name_concepts(seen(ids, concepts, values), decode)
    for concept, one in enumerate(names):
        assert one.concept == concept and one.occurrences == (values[..., concept] > 0).sum()
        assert one.share == pytest.approx((values[..., concept] > 0).mean())
        assert (one.coverage is None) == (one.name is None)
    assert names[PLANTED].name in ("w7, w8", "w8, w7")
    covered = ((ids == 7) | (ids == 8)).sum() / (values[..., PLANTED] > 0).sum()
    assert covered < 1 and names[PLANTED].coverage == pytest.approx(covered)


@pytest.mark.parametrize("passages", [1, 3])
def test_the_strongest_places_are_those_of_a_loop(passages: int) -> None:
    ids, concepts, values = planted()
    values = values * np.random.default_rng(5).random(values.shape)
    places, strengths = seen(ids, concepts, values, passages).strongest()
    found: dict[int, list[tuple[float, int, int]]] = {}
    for (concept, window, position), strength in zip(places.T.tolist(), strengths.tolist(), strict=True):
        found.setdefault(concept, []).append((strength, window, position))
    expected = {}
    for concept in range(concepts.shape[-1]):
        best = [(max((values[w, t, concept], w, t) for t in range(T))) for w in range(WINDOWS)]
        chosen = sorted((one for one in best if one[0] > 0), reverse=True)[:passages]
        if chosen:
            expected[concept] = chosen
    assert found == expected


def test_observed_are_the_latents_of_the_training_text(tmp_path: Path) -> None:
    shards, windows = corpus(tmp_path / "s", 40), 40
    made = observe(teacher(), autoencoder(), shards, layer=1, seq_len=SEQ, tokens=windows * SEQ)
    ids = shards.windows(np.arange(windows), SEQ)
    latents = autoencoder().encode(hidden_at(teacher(), torch.from_numpy(ids), 1))
    active = [latents.ids[half::2][latents.values[half::2] > 0] for half in (0, 1)]
    expected = [torch.bincount(one, minlength=30).tolist() for one in active]
    assert made.counts().tolist() == expected and sum(expected[0]) > 0
    for one in name_concepts(made, decode, shards, SEQ):
        assert bool(one.passages) == bool(one.occurrences)
        for passage in one.passages:
            assert len(passage.before.split()) <= BEFORE and len(passage.after.split()) <= AFTER
            assert passage.before + passage.token + passage.after in decode(
                next(row for row in ids.tolist() if passage.before + passage.token + passage.after in decode(row))
            )
        strengths = [passage.activation for passage in one.passages]
        assert strengths == sorted(strengths, reverse=True)


def test_one_window_cannot_be_checked(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[1] * (SEQ + 3)], vocab_size=40, eos_id=0)
    with pytest.raises(CocomixError, match="fewer tokens than two windows"):
        observe(teacher(), autoencoder(), shards, layer=1, seq_len=SEQ, tokens=100)


def test_a_name_is_readable() -> None:
    listed = [TokenScore(token=token, score=score) for token, score in ((" war", 1.0), ("war", 0.9), ("\n", 0.5))]
    assert chosen_words(listed) == ["war", "\\n"]
    assert chosen_words([*listed, TokenScore(token=" rare", score=0.01)]) == ["war", "\\n"]


def found(sae: str, name: str) -> FoundNames:
    concepts = [ConceptName(concept=concept, name=f"{name} {concept}", source="tokens") for concept in range(3)]
    return FoundNames(sae=sae, tokens="t", split="train", windows=2, positions=8, concepts=concepts)


def test_edits_survive_finding_names_again_and_belong_to_one_autoencoder(tmp_path: Path) -> None:
    write_found(tmp_path, found("a", "first"))
    edit_name(tmp_path, "a", 1, " mine ")
    write_found(tmp_path, found("a", "second"))
    names = read_names(tmp_path, "a")
    assert [names.name(concept) for concept in range(3)] == ["second 0", "mine", "second 2"]
    assert names.of(1).edited and names.of(1).source == "edited" and not names.of(0).edited
    assert [read_names(tmp_path, "b").name(concept) for concept in range(3)] == [None] * 3
    write_found(tmp_path, found("b", "other"))
    assert read_names(tmp_path, "b").name(1) == "other 1"
    assert [read_names(tmp_path, "a").name(concept) for concept in range(3)] == [None, "mine", None]
    edit_name(tmp_path, "a", 1, "")
    assert read_names(tmp_path, "a").name(1) is None
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {FOUND, EDITED, EDITS_LOCK}  # lock files are never deleted: a process may be waiting for one


@pytest.mark.parametrize(
    ("file", "content"),
    [(FOUND, "{"), (FOUND, json.dumps({"format": 1})), (EDITED, "[]"), (EDITED, '{"edited": {"a": {"x": "y"}}}')],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(CocomixError, match=f"{file} is damaged"):
        read_names(tmp_path, "a")
