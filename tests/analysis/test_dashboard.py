"""A dashboard says what the statistics, the text and the weights say."""

from pathlib import Path

import pytest
import torch

from cocomix.analysis import Dashboards, direct_effect, measured_effect
from cocomix.analysis.concept_index import EDGES, PLACES
from cocomix.analysis.dashboards import LISTED, SHOWN, SIMILAR, Effect
from cocomix.analysis.naming import AFTER, BEFORE
from cocomix.utils.errors import CocomixError
from tests.helpers.small_index import SEQ, TRUTH, WINDOWS, C, Labels, corpus, decode, names, statistics, student


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Dashboards:
    model, shards = student(), corpus(tmp_path_factory.mktemp("text") / "s")
    return Dashboards(statistics(model, shards, Labels()), model, shards, decode)


def test_counts_and_passages_are_those_of_the_text(made: Dashboards) -> None:
    found, seen = made.statistics, set()
    for concept in range(C):
        one = made.of(concept, names(), measure=False)
        assert one.concept == concept and one.about == names().of(concept) and one.positions == WINDOWS * SEQ
        assert one.predicted.count == sum(one.predicted.histogram.counts) == found.predicted[concept]
        assert one.predicted.share == one.predicted.count / one.positions
        assert one.predicted.histogram.edges == EDGES.tolist()
        assert one.agreement is not None and one.agreement.truth == TRUTH
        assert one.agreement.positions == found.labelled and one.agreement.both == found.both[concept]
        if one.agreement.predicted:
            assert one.agreement.precision == one.agreement.both / one.agreement.predicted
        else:
            assert one.agreement.precision is None
        places, strengths = found.places_of(concept, SHOWN)
        assert [passage.strength for passage in one.predicted.passages] == strengths.tolist()
        for (window, position, true), passage in zip(places.tolist(), one.predicted.passages, strict=True):
            ids = made.shards.windows([window], SEQ)[0].tolist()
            assert passage.token == decode([ids[position]])
            assert passage.before == decode(ids[max(0, position - BEFORE) : position])
            assert passage.after == decode(ids[position + 1 : position + 1 + AFTER])
            assert passage.true is (None if true < 0 else true == 1)
            seen.add(passage.true)
    assert seen == {None, True, False}


def best(change: list[float], sign: int) -> list[Effect]:
    ranking = sorted(range(len(change)), key=lambda token: -sign * change[token])[:LISTED]
    return [Effect(token=decode([v]), id=v, effect=change[v]) for v in ranking if sign * change[v] > 0]


def test_effects_are_the_largest_of_all_tokens(made: Dashboards) -> None:
    concept = int(made.statistics.predicted.argmax())
    one = made.of(concept, names())
    direct = direct_effect(made.student, concept).tolist()
    assert one.promotes == best(direct, 1) and one.suppresses == best(direct, -1)
    places, _ = made.statistics.places_of(concept, PLACES)
    change = measured_effect(made.student, concept, made.shards.windows(places[:, 0], SEQ), places[:, 1]).tolist()
    assert one.measured is not None and one.measured.places == len(places) == PLACES
    assert one.measured.promotes == best(change, 1) and one.measured.suppresses == best(change, -1)


def test_similar_concepts_point_the_same_way(made: Dashboards) -> None:
    rows = made.student.channel.vector.weight.detach()
    for concept in (0, 11):
        cosines = {
            other: float(torch.cosine_similarity(rows[concept], rows[other], dim=0))
            for other in range(C)
            if other != concept
        }
        expected = sorted(cosines, key=lambda other: -cosines[other])[:SIMILAR]
        listed = made.of(concept, names(), measure=False).similar
        assert [one.concept for one in listed] == expected
        assert [one.cosine for one in listed] == pytest.approx([cosines[other] for other in expected])
        assert [one.name for one in listed] == [names().name(other) for other in expected]


def test_the_student_runs_once_for_a_measure_and_never_without(made: Dashboards) -> None:
    passes = []
    handle = made.student.register_forward_hook(lambda *_: passes.append(1))
    fresh = Dashboards(made.statistics, made.student, made.shards, decode)
    assert fresh.of(2, names(), measure=False).measured is None and not passes
    first, count = fresh.of(2, names()), len(passes)
    assert first.measured is not None and count > 0
    assert fresh.of(2, names()) == fresh.of(2, names(), measure=False) == first and len(passes) == count
    handle.remove()


def test_a_student_that_mixes_nothing_in_has_no_effects(tmp_path: Path) -> None:
    model, shards = student("none"), corpus(tmp_path / "s")
    one = Dashboards(statistics(model, shards), model, shards, decode).of(3, names())
    assert (one.promotes, one.suppresses, one.measured, one.similar, one.agreement) == ([], [], None, [], None)
    assert one.predicted.count > 0 and all(passage.true is None for passage in one.predicted.passages)


@pytest.mark.parametrize("concept", [-1, C])
def test_no_such_concept(made: Dashboards, concept: int) -> None:
    with pytest.raises(CocomixError, match=f"no concept {concept}; the student's are 0 to {C - 1}"):
        made.of(concept, names())
