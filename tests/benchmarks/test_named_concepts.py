"""The rule by which concepts are shown on a page."""

import pytest

from benchmarks.named_concepts import page, qualifies
from cocomix.analysis.naming import ConceptName, Passage, TokenScore


def concept(number: int, tokens: list[str], share: float = 0.002, stability: float = 0.9) -> ConceptName:
    return ConceptName(
        concept=number,
        name=", ".join(tokens),
        share=share,
        stability=stability,
        tokens=[TokenScore(token=token, score=0.1) for token in tokens],
        passages=[Passage(before=" the ", token=tokens[0], after=" of\nwar", activation=1.0)],
    )


@pytest.mark.parametrize(
    ("tokens", "share", "shown"),
    [
        ([" security", " prosperity", " strength"], 0.002, True),
        ([" security", " secure", " strength"], 0.002, False),  # one word twice
        ([" security", " peace", " strength"], 0.002, False),  # a short one
        (["security", " prosperity", " strength"], 0.002, False),  # a part of a word
        ([" security", " prosperity"], 0.002, False),
        ([" security", " prosperity", " strength"], 0.02, False),
        ([" security", " prosperity", " strength"], 0.0002, False),
    ],
)
def test_which_concepts_qualify(tokens: list[str], share: float, shown: bool) -> None:
    assert qualifies(concept(0, tokens, share)) is shown
    assert not qualifies(concept(0, tokens, share).model_copy(update={"name": None}))


def test_the_most_stable_come_first() -> None:
    tokens = [" security", " prosperity", " strength"]
    text = page([concept(number, tokens, stability=number / 20) for number in range(12)], "a run", 100)
    shown = [line.split(":")[0].strip("*") for line in text.splitlines() if line.startswith("**")]
    assert shown == [str(number) for number in range(11, 1, -1)]
    assert "- … the **security** of war …" in text and "of 12 concepts that qualify, of 12" in text
