"""The steering gallery: scores that are kept, and what the server answers of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.sessions import OUTPUT_SCORE, PRESETS
from cocomix.objectives.cocomix import CoCoMixStudent
from cocomix.objectives.forcing import STRONGEST
from cocomix.pipeline.concept_stages import preset_strength, student_output_scores
from cocomix.steering.study.output_score import STRENGTH, candidates, most_steerable, neutral_prompts, output_scores
from tests.helpers.explored_run import COCOMIX, NTP, hooked


def kept(folder: Path) -> Path:
    return folder / "output-scores" / "cocomix-seed0.json"


def test_presets_are_the_best_scores(client: TestClient, catalog: ModelCatalog, folder: Path) -> None:
    session = catalog.open(COCOMIX)
    shards, names = session.stage.tokens.shards("val"), session.name_store.names()
    own = candidates(session.dashboards.statistics, names, session.decode, vocab_size=shards.vocab_size)
    scores = output_scores(session.model, neutral_prompts(shards, session.stage.run_config.seq_len), own)
    assert scores
    answer = client.get("/api/presets", params={"model": COCOMIX}).json()
    assert answer["scored"] == len(scores) and len(answer["presets"]) <= PRESETS
    for preset, score in zip(answer["presets"], most_steerable(scores, PRESETS, session.decode), strict=True):
        assert preset["concept"] == score.concept and preset["score"] == pytest.approx(score.score, abs=1e-7)
        assert preset["words"] == [session.decode([token]) for token in score.tokens]
        assert preset["name"] == names.name(score.concept) and preset["strength"] == STRENGTH
    assert not hooked(catalog, COCOMIX)
    ranking = session.ranked(OUTPUT_SCORE)
    by_score = {score.concept: score.score for score in session._output_scores}
    assert sorted(ranking) == sorted(by_score) and [by_score[one] for one in ranking] == sorted(by_score.values())[::-1]
    assert session.ranked("number") == list(range(session.n_concepts))


def test_a_student_trained_to_be_steered_is_steered_further() -> None:
    for steered, strength in ((0.0, STRENGTH), (0.75, 2 * STRONGEST)):
        settings = CoCoMixStudent.model_validate(
            {"objective": "cocomix", "labels": "a", "concept": {"steered": steered}}
        )
        assert preset_strength(SimpleNamespace(config=settings)) == strength  # pyright: ignore[reportArgumentType]


def test_scores_are_made_once_and_again_where_they_are_damaged(catalog: ModelCatalog, folder: Path) -> None:
    session, passes = catalog.open(COCOMIX), []

    def scores() -> Any:
        before = len(passes)
        found = student_output_scores(
            session.stage, session.model, session.dashboards.statistics, session.name_store.names()
        )
        return found, len(passes) > before

    session.presets()
    handle = session.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        first, ran = scores()
        assert not ran and kept(folder).exists()
        text = kept(folder).read_text()
        for damaged in ("", "{", json.dumps({**json.loads(text), "key": "another"}), '{"key": 1}'):
            kept(folder).write_text(damaged)
            again, ran = scores()
            assert ran and [one.concept for one in again] == [one.concept for one in first]
            assert kept(folder).read_text() == text
    finally:
        handle.remove()


def test_a_student_without_concepts_has_none(client: TestClient) -> None:
    answer = client.get("/api/presets", params={"model": NTP})
    assert answer.status_code == 400 and "predicts no concepts" in answer.json()["error"]
