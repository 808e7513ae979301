"""JSON that cannot be read is one kind of error, whatever is wrong with it; temporary files of dead writers."""

import os
from pathlib import Path

import pytest

from cocomix.utils import files
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


def test_a_writer_removes_what_dead_writers_of_its_file_left(tmp_path: Path) -> None:
    dead, living = 2**22 + 1, os.getppid()
    left = [
        tmp_path / f"{name}.{files.NODE}-{pid}.tmp" for name, pid in (("a[1]", dead), ("a[1]", living), ("b", dead))
    ]
    for path in left:
        path.touch()
    files.write_text(tmp_path / "a[1]", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", left[1].name, left[2].name}
