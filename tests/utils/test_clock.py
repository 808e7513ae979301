"""The stopwatch adds up attempts and loses little to a kill."""

from pathlib import Path

import pytest

from cocomix.utils.console import Stopwatch


def test_attempts_add_up(tmp_path: Path) -> None:
    first = Stopwatch(tmp_path / "s.json", every_seconds=0)
    first.tick()  # the process is killed after this: nothing else is called
    (tmp_path / "s.json").write_text('{"seconds": 50.0}')
    second = Stopwatch(tmp_path / "s.json", every_seconds=100)
    assert 50 <= second.seconds < 60
    second.tick()
    assert Stopwatch(tmp_path / "s.json").seconds < 50.1
    Stopwatch(tmp_path / "other.json", writes=False, every_seconds=0).tick()
    assert not (tmp_path / "other.json").exists()


def test_damage_and_a_missing_folder_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text("{")
    assert Stopwatch(tmp_path / "s.json").seconds < 10
    Stopwatch(tmp_path / "nowhere" / "s.json", every_seconds=0).tick()


@pytest.mark.parametrize("seconds", ["-1", "NaN", "Infinity", "1e999", "1" + "0" * 400, '"x"', "null", "[" * 100_000])
def test_seconds_that_no_clock_shows_are_none(tmp_path: Path, seconds: str) -> None:
    (tmp_path / "s.json").write_text(f'{{"seconds": {seconds}}}')
    assert 0 <= Stopwatch(tmp_path / "s.json").seconds < 10
