"""Rows of concepts against plain sorting and searching."""

import math
from pathlib import Path

import pytest

from cocomix.analysis import SORTS, ConceptIndex, ConceptStatistics
from cocomix.utils.errors import CocomixError
from tests.helpers.small_index import C, Labels, corpus, names, statistics, student


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ConceptStatistics:
    return statistics(student(), corpus(tmp_path_factory.mktemp("text") / "s"), Labels())


def known(found: ConceptStatistics, concept: int) -> dict[str, object]:
    """A row by hand."""
    about = names().of(concept)
    count = {one: int(getattr(found, one)[concept]) for one in ("predicted", "predicted_labelled", "true", "both")}
    return {
        "concept": concept,
        "name": about.name,
        "edited": about.edited,
        "stability": about.stability,
        "predicted": count["predicted"] / found.positions,
        "true": count["true"] / found.labelled,
        "precision": count["both"] / count["predicted_labelled"] if count["predicted_labelled"] else None,
        "recall": count["both"] / count["true"] if count["true"] else None,
    }


def searched(q: str) -> list[int]:
    """Concepts a search finds, by hand."""
    wanted = q.strip().lower()
    hits = []
    for concept in range(C):
        about = names().of(concept)
        texts = [about.name or "", *(one.token for one in about.tokens + about.next_tokens)]
        if any(wanted in text.lower() for text in texts):
            hits.append(concept)
    return hits


@pytest.mark.parametrize("q", ["", "word", " TOK2 ", "after6", "mine", "nowhere", "aWord"])
@pytest.mark.parametrize("sort", SORTS)
def test_rows_are_those_of_plain_sorting(found: ConceptStatistics, sort: str, q: str) -> None:
    rows = [known(found, concept) for concept in searched(q)]

    def key(row: dict) -> tuple:
        if sort == "number":
            return (row["concept"],)
        value = row[sort]
        if sort == "name":
            return (value is None, (value or "").lower(), row["concept"])
        return (value is None, 0 if value is None else -value, row["concept"])

    listed = ConceptIndex(found, names()).listing(q=q, sort=sort, limit=C)
    assert listed.total == len(rows)
    assert [one.model_dump() for one in listed.concepts] == sorted(rows, key=key)


def test_parts_put_together_are_the_whole(found: ConceptStatistics) -> None:
    index = ConceptIndex(found, names())
    whole = index.listing(sort="precision", limit=C).concepts
    parts = [index.listing(sort="precision", offset=start, limit=7) for start in range(0, C + 7, 7)]
    assert [row for part in parts for row in part.concepts] == whole and {part.total for part in parts} == {C}


@pytest.mark.parametrize("q", ["6", "c6", "C6", " 06 "])
def test_a_number_comes_first_whatever_the_order(found: ConceptStatistics, q: str) -> None:
    for sort in SORTS:
        listed = ConceptIndex(found, names()).listing(q=q, sort=sort, limit=C)
        ids = [one.concept for one in listed.concepts]
        assert ids[0] == 6 and len(set(ids)) == len(ids) == listed.total
        assert set(ids) == {6, *searched(q)}


def test_a_number_beyond_the_concepts_is_only_text(found: ConceptStatistics) -> None:
    assert ConceptIndex(found, names()).listing(q=str(C)).total == 0


def test_an_edit_is_listed_and_found(found: ConceptStatistics) -> None:
    index, edited = ConceptIndex(found, names()), names().of(0).model_copy(update={"name": "aaa new", "edited": True})
    assert index.listing(sort="name").concepts[0].concept != 0
    index.rename(edited)
    first = index.listing(sort="name").concepts[0]
    assert (first.concept, first.name, first.edited) == (0, "aaa new", True)
    assert [one.concept for one in index.listing(q="AAA").concepts] == [0]
    assert index.listing(q="tok0").total == len(searched("tok0"))


def test_without_labels_there_are_no_shares_of_them(tmp_path: Path) -> None:
    rows = ConceptIndex(statistics(student(), corpus(tmp_path / "s")), names()).listing(sort="recall", limit=C).concepts
    assert {(one.true, one.precision, one.recall) for one in rows} == {(None, None, None)}
    assert math.isclose(sum(one.predicted for one in rows), 5) and [one.concept for one in rows] == list(range(C))


def test_an_unknown_order_is_named(found: ConceptStatistics) -> None:
    with pytest.raises(CocomixError, match="sorted by 'size'; choose one of predicted, true"):
        ConceptIndex(found, names()).listing(sort="size")
