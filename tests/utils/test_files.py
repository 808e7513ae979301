"""JSON that cannot be read is one kind of error, whatever is wrong with it."""

from pathlib import Path

import pytest

from cocomix.utils.files import parse_json, read_json


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ufeff1"])
def test_what_is_no_json_is_a_value_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


def test_bytes_that_are_no_text_are_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")
    assert parse_json('{"a": [1]}') == {"a": [1]}
