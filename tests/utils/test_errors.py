"""What a user is told stays one line that can be read, whatever the files quoted in it hold."""

import pickle

import pytest

from cocomix.utils.errors import LONGEST, CocomixError, ConfigError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("naïve 𝕏; mend it", "naïve 𝕏; mend it"),
        ("a\nb\r; mend it", r"a\nb\r; mend it"),
        ("\x1b[31mred\x07 \ud800\u202e; mend it", r"\x1b[31mred\x07 \ud800\u202e; mend it"),
    ],
)
def test_a_message_is_one_printable_line(message: str, shown: str) -> None:
    assert str(CocomixError(message)) == shown and str(ConfigError(message)) == shown


@pytest.mark.parametrize("filling", ["x", "\n", "9"])
def test_a_long_message_keeps_its_cause_and_its_mend(filling: str) -> None:
    said = str(CocomixError(f"the file f holds {filling * 1_000_000}; restore it"))
    assert said.startswith("the file f holds") and said.endswith("; restore it") and " [...] " in said
    assert len(said) <= LONGEST and said.isprintable()


def test_it_survives_the_way_between_processes() -> None:
    error = CocomixError("a\nb" + "x" * 5000)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
