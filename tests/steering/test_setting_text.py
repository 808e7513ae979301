"""Steering as text and as JSON: what is written is what is read, and what cannot be read says why."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocomix.model import INTERVENTIONS, Ablate, Amplify, Clamp, Dampen, Setting
from cocomix.steering import format_steering, from_json, parse_steering, to_json
from cocomix.utils.errors import CocomixError

finite = st.floats(allow_nan=False, allow_infinity=False)
starts = st.integers(0, 10**6)
every = {
    "amplify": st.builds(Amplify, finite, start=starts),
    "dampen": st.builds(Dampen, st.floats(0, 1), start=starts),
    "ablate": st.builds(Ablate, start=starts),
    "clamp": st.builds(Clamp, finite, start=starts),
}
anything = st.dictionaries(st.integers(0, 10**6), st.one_of(*(every[name] for name in INTERVENTIONS)))


@given(anything)
def test_text_and_json_are_read_as_they_were_written(setting: Setting) -> None:
    text = format_steering(setting)
    assert parse_steering(text) == setting and list(parse_steering(text)) == list(setting)
    assert from_json(to_json(setting)) == setting


def test_the_forms_people_type() -> None:
    found = parse_steering(" c123=+4, c7:off,c9=clamp:2@10 ,c1=-2.5, c2 = dampen:0.25 @ 3,c3=amplify:1e-3,c4:ablate")
    assert found == {
        123: Amplify(4.0),
        7: Ablate(),
        9: Clamp(2.0, start=10),
        1: Amplify(-2.5),
        2: Dampen(0.25, start=3),
        3: Amplify(0.001),
        4: Ablate(),
    }
    assert format_steering({123: Amplify(4), 7: Ablate(), 9: Clamp(2.0, start=10)}) == "c123=+4,c7:off,c9=clamp:2@10"
    assert parse_steering(" ") == {} and format_steering({}) == ""


def test_names_are_resolved_by_the_caller() -> None:
    known = {"ending": 5, "New York": 8}
    assert parse_steering("ending:off,New York=+2,c1=+1", known.__getitem__) == {
        5: Ablate(),
        8: Amplify(2.0),
        1: Amplify(1.0),
    }
    with pytest.raises(CocomixError, match="concept 5 is steered twice"):
        parse_steering("ending:off,c5=+1", known.__getitem__)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("c1", "the steering item 'c1' cannot be read; write items such as"),
        ("c1=+1,,c2:off", "the steering item '' cannot be read"),
        ("ending:off", "no concept named 'ending' here; give its number"),
        ("c1=+1,c1:off", "concept 1 is steered twice in"),
        ("c1=+x", "'\\+x' is no number"),
        ("c1=+inf", "inf cannot be used"),
        ("c1=clamp", "clamp needs a number"),
        ("c1=clamp:", "'' is no number"),
        ("c1=ablate:3", "ablate takes no number"),
        ("c1=4", "no intervention '4'; choose one of amplify"),
        ("c1=dampen:2", "choose a share from 0 to 1"),
        ("c1=+1@x", "does not say from which token on"),
        ("c1=+1@-3", "does not say from which token on"),
        ("c1=+1@2@3", "cannot be read"),
        (f"c{'9' * 9000}=+1", "the number 99999999... is too long"),
        (f"c1=+1@{'9' * 9000}", "the number 99999999... is too long"),
        (f"c1=+1@{2**63}", "cannot start at token 9223372036854775808"),
    ],
)
def test_text_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        parse_steering(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"concept": -1}, "steering.0.concept: .*got -1"),
        ({"concept": "1"}, "steering.0.concept: "),
        ({"do": "tickle"}, "no intervention 'tickle'; choose one of"),
        ({"amount": None}, "amplify needs a number"),
        ({"amount": float("nan")}, "nan cannot be used"),
        ({"do": "ablate"}, "ablate takes no number"),
        ({"start": -1}, "steering.0.start: .*got -1"),
        ({"strength": 2}, "the key 'steering.0.strength' does not exist"),
    ],
)
def test_json_that_does_not_fit(change: dict, words: str) -> None:
    item = {"concept": 1, "do": "amplify", "amount": 2.0, "start": 0}
    assert from_json(json.dumps({"steering": [item]})) == {1: Amplify(2.0)}
    with pytest.raises(CocomixError, match=words):
        from_json(json.dumps({"steering": [item | change]}))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 9000])
def test_json_nobody_meant(text: str) -> None:
    with pytest.raises(CocomixError, match=r"is not JSON .*copy the whole file"):
        from_json(text)


def test_a_strength_larger_than_any_float() -> None:
    with pytest.raises(CocomixError, match="cannot be used; choose a finite number"):
        Amplify(10**400)


def test_json_of_another_kind() -> None:
    with pytest.raises(CocomixError, match=r"is not JSON .*copy the whole file"):
        from_json('{"steering": [')
    with pytest.raises(CocomixError, match="no object"):
        from_json("[]")
    with pytest.raises(CocomixError, match="the key 'steering' is missing"):
        from_json("{}")
    item = {"concept": 1, "do": "ablate"}
    with pytest.raises(CocomixError, match="concept 1 is steered twice"):
        from_json(json.dumps({"steering": [item, item]}))
