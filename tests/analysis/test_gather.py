"""What is gathered is what plain loops over every position find."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.analysis import ConceptStatistics, gather_statistics
from cocomix.analysis.concept_index import EDGES, PLACES, UNLABELLED, concept_channel, predictions
from cocomix.data import TokenShards, write_shards
from cocomix.utils.errors import CocomixError
from tests.helpers.small_index import KEY, SEQ, TRUTH, WINDOWS, C, K, Labels, corpus, statistics, student


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return corpus(tmp_path_factory.mktemp("text") / "s")


def by_loops(shards: TokenShards, labels: Labels | None) -> dict[str, object]:
    """All statistics, position by position from the whole forward pass."""
    model = student()
    counts = {name: [0] * C for name in ("predicted", "predicted_labelled", "true", "both")}
    histogram = [[0] * (len(EDGES) - 1) for _ in range(C)]
    best: list[dict[int, tuple[float, float, int, int]]] = [{} for _ in range(C)]
    labelled = 0
    for window in range(WINDOWS):
        ids = shards.windows([window], SEQ)
        taught = None if labels is None else labels.read(np.array([window]), SEQ)[0].tolist()
        with torch.no_grad():
            z = model(torch.from_numpy(ids)).concept_logits[0].tolist()
        for position in range(SEQ):
            row = z[position]
            truth = None if taught is None or taught[position][0] < 0 else taught[position]
            labelled += truth is not None
            for one in truth or ():
                counts["true"][one] += 1
            for one in sorted(range(C), key=lambda c, row=row: -row[c])[:K]:
                strength, logit = float(np.float32(row[one] / max(map(abs, row)))), float(np.float32(row[one]))
                counts["predicted"][one] += 1
                counts["predicted_labelled"][one] += truth is not None
                counts["both"][one] += truth is not None and one in truth
                inside = [low <= strength < high for low, high in itertools.pairwise(EDGES)]
                histogram[one][inside.index(True) if True in inside else -1] += 1
                said = UNLABELLED if truth is None else int(one in truth)
                if window not in best[one] or (strength, logit) > best[one][window][:2]:
                    best[one][window] = strength, logit, position, said
    places = []
    for windows in best:
        ranking = sorted((-s, -z, w, p, said) for w, (s, z, p, said) in windows.items())[:PLACES]
        places.append([(-s, w, p, said) for s, _, w, p, said in ranking])
    return counts | {"histogram": histogram, "places": places, "labelled": labelled}


def as_lists(found: ConceptStatistics) -> dict[str, object]:
    names = ("predicted", "predicted_labelled", "true", "both", "histogram")
    places = []
    for concept in range(C):
        where, strengths = found.places_of(concept, PLACES)
        places.append([(s, w, p, said) for s, (w, p, said) in zip(strengths.tolist(), where.tolist(), strict=True)])
    return {name: getattr(found, name).tolist() for name in names} | {"places": places, "labelled": found.labelled}


@pytest.mark.parametrize("logit_bytes", [1, 3 * SEQ * C * 4, 1 << 26])
def test_gathered_is_what_loops_find(shards: TokenShards, logit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.analysis.concept_index.LOGIT_BYTES", logit_bytes)
    found, expected = statistics(student(), shards, Labels()), by_loops(shards, Labels())
    assert as_lists(found) == expected
    assert 0 < found.labelled < found.positions == WINDOWS * SEQ and found.windows == WINDOWS
    assert (found.strengths == 1).sum() > WINDOWS  # so that places are often chosen by their logits alone
    assert found.truth == TRUTH and found.both.sum() > 0
    assert len(found.places_of(int(found.predicted.argmax()), PLACES)[0]) == PLACES


def test_without_labels_nothing_is_true_or_false(shards: TokenShards) -> None:
    found = statistics(student(), shards)
    assert as_lists(found) == by_loops(shards, None)
    assert found.truth is None and found.labelled == 0 and np.isnan(found.precision()).all()


def test_shares_are_nan_where_there_is_nothing_to_share(shards: TokenShards) -> None:
    found = statistics(student(), shards, Labels())
    for concept in range(C):
        both, predicted, true = (int(one[concept]) for one in (found.both, found.predicted_labelled, found.true))
        for share, whole in ((found.precision()[concept], predicted), (found.recall()[concept], true)):
            assert share == both / whole if whole else np.isnan(share)
    assert not found.predicted_labelled.all()


def test_fewer_tokens_are_fewer_windows_evenly_spread(shards: TokenShards) -> None:
    steps = []
    key = KEY.model_copy(update={"tokens": 4 * SEQ})
    found = gather_statistics(student(), shards, key, progress=lambda *given: steps.append(given))
    assert found.windows == 4 and steps == [(4, 4, {})]
    assert set(found.places[:, 0].tolist()) == {0, 13, 26, 39}


def test_the_concepts_are_those_mixed_in() -> None:
    model = student()
    given = {}
    handle = model.channel.vector.register_forward_hook(lambda _m, inputs, _o: given.update(ids=inputs[0].ids))
    ids = torch.arange(1, SEQ + 1)[None]
    model(ids)
    handle.remove()
    assert predictions(model, ids)[0].tolist() == given["ids"].tolist()


def test_what_cannot_be_gathered_is_refused(tmp_path: Path, shards: TokenShards) -> None:
    short = write_shards(tmp_path / "s", [[1] * (SEQ - 3)], vocab_size=40, eos_id=0)
    with pytest.raises(CocomixError, match="fewer tokens than one window"):
        statistics(student(), short)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=20, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(CocomixError, match="predicts no concepts"):
        concept_channel(plain)
