"""The fuzz harness: it reports every kind of failure, and a few dozen mutants find none."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from benchmarks.fuzz import watched_reading as watched
from benchmarks.fuzz.__main__ import ReaderInputs, fuzz_reader
from benchmarks.fuzz.hostile_values import BOMB, JSON, YAML
from benchmarks.fuzz.mutations import BYTES, STRUCTURED, mutated
from benchmarks.fuzz.reader import PathOutside, Reader
from benchmarks.fuzz.watched_reading import Task, read_watched
from cocomix.utils.errors import CocomixError

MUTANTS = 24


def outcomes(folder: Path, read: Callable[[int], object], count: int = 3, **more: Any) -> list[dict[str, Any]]:
    """Outcomes of a reading function that gets the input's number."""
    folder.mkdir(exist_ok=True)
    number = folder / "number"

    def prepare(one: int) -> str:
        number.write_text(str(one))
        return f"input {one}"

    task = Task(prepare, lambda: read(int(number.read_text())), lambda: None, (folder,), **more)
    return list(read_watched(task, range(count)))


def only_second(work: Callable[[], object]) -> Callable[[int], object]:
    """Do the work for input 1 only, to show that reading continues after it."""
    return lambda number: work() if number == 1 else None


def refusing(message: str) -> Callable[[], object]:
    def refuse() -> None:
        raise CocomixError(message)

    return refuse


def exhausted() -> None:
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise CocomixError("the file is damaged; restore it") from error


def unprintable() -> None:
    error = CocomixError("x")
    error.args = ("two\nlines; fix them",)
    raise error


@pytest.mark.parametrize(
    ("work", "outcome", "why"),
    [
        (lambda: None, "read", ""),
        (refusing("the file is damaged; restore it"), "refused", "restore it"),
        (lambda: Path("/nowhere/x").read_text(), "escaped", "read: /nowhere/x"),
        (lambda: [][0], "crashed", "IndexError"),
        (lambda: sys.exit(3), "crashed", "SystemExit"),
        (lambda: os.abort(), "crashed", "died of -6"),
        (refusing("short"), "crashed", "no sentence"),
        (unprintable, "crashed", "no sentence"),
        (lambda: time.sleep(60), "hung", "no end after"),
        (exhausted, "memory", "MemoryError"),
        (lambda: len(bytes(1 << 20) * 700), "memory", "grew"),
        (lambda: Path("/tmp/cocomix-fuzz-must-not-be").write_text("x"), "escaped", "written"),
        (lambda: os.remove("/nowhere/x"), "escaped", "os.remove"),
        (lambda: shutil.rmtree("/nowhere"), "escaped", "shutil.rmtree"),
        (lambda: os.system("true"), "escaped", "os.system"),
        (lambda: subprocess.run(["true"], check=True), "escaped", "subprocess.Popen"),
        (lambda: socket.create_connection(("127.0.0.1", 9)), "escaped", "socket."),
        (lambda: __import__("pickle").loads(b"cos\nsystem\n."), "escaped", "pickle.find_class"),
    ],
)
def test_every_kind_of_failure_is_reported(tmp_path: Path, work: Callable[[], object], outcome: str, why: str) -> None:
    found = outcomes(tmp_path, only_second(work), seconds=1.0 if outcome == "hung" else 60.0)
    assert [one["outcome"] for one in found] == ["read", outcome, "read"], found
    assert why in found[1].get("why", "") and [one["input"] for one in found] == [f"input {n}" for n in range(3)]


def test_a_swallowed_violation_is_reported(tmp_path: Path) -> None:
    def swallowing() -> None:
        with contextlib.suppress(BaseException):
            Path("/etc/passwd").read_text()

    assert [one["outcome"] for one in outcomes(tmp_path, only_second(swallowing))] == ["read", "escaped", "read"]


def test_a_link_may_be_read_through_and_not_written_through(tmp_path: Path) -> None:
    outside, folder = tmp_path / "secret", tmp_path / "in"
    outside.write_text("x")
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    works = [
        lambda: (folder / "link").read_text(),
        lambda: (folder / "link").write_text("y"),
        lambda: (folder / ".." / "secret").read_text(),
        lambda: (folder / "up" / "secret").unlink(),
        lambda: (folder / "link").unlink(),
    ]
    found = [one["outcome"] for one in outcomes(folder, lambda number: works[number](), count=5)]
    assert found == ["read", "escaped", "escaped", "escaped", "read"] and outside.read_text() == "x"


def test_a_reader_that_fails_on_valid_files_is_an_error(tmp_path: Path) -> None:
    task = Task(str, lambda: None, lambda: [][0], (tmp_path,))
    with pytest.raises(RuntimeError, match=r"the valid files were not read.*IndexError"):
        list(read_watched(task, range(2)))


def test_children_are_replaced_after_some_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "PER_CHILD", 2)
    parents = outcomes(
        tmp_path, lambda _: (_ for _ in ()).throw(CocomixError(f"process {os.getpid()} says no")), count=5
    )
    assert len({one["why"] for one in parents}) == 3


def toy(read: Callable[[Path], object], **more: Any) -> Reader:
    def make(folder: Path) -> None:
        (folder / "a.json").write_text('{"a": [1, 2, {"b": "x"}], "c": null}')

    return Reader("toy", make, read, **more)


def careful(folder: Path) -> None:
    try:
        json.loads((folder / "a.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CocomixError("a.json is damaged; restore it") from error


def test_a_number_makes_the_same_input_again(tmp_path: Path) -> None:
    inputs_of_reader, again = (ReaderInputs(toy(careful), tmp_path / name, seed=5) for name in ("a", "b"))
    inputs = set()
    for number in range(len(inputs_of_reader.table), len(inputs_of_reader.table) + 60):
        inputs_of_reader.prepare(number)
        for other in (number + 1, number):
            again.prepare(other)
        contents = [one.folder / "a.json" for one in (inputs_of_reader, again)]
        first, second = (path.read_bytes() if path.is_file() else None for path in contents)
        assert first == second or b"outside" in (first or b"")  # there the folder's own path is in it
        inputs.add(first)
    assert len(inputs) > 40


def test_counts_and_wrong_inputs_are_reported(tmp_path: Path) -> None:
    found = fuzz_reader(toy(careful), 50, 0, tmp_path / "a")
    assert found["crashed"] == found["hung"] == found["memory"] == found["escaped"] == 0 and not found["wrong"]
    assert found["inputs"] == found["read"] + found["refused"] == found["from_the_table"] + 50
    found = fuzz_reader(toy(lambda folder: json.loads((folder / "a.json").read_text())), 50, 0, tmp_path / "b")
    assert found["crashed"] == len(found["wrong"]) > 5
    assert {"number", "input", "why", "reader"} <= found["wrong"][0].keys()


def test_a_path_that_leads_out_is_an_escape(tmp_path: Path) -> None:
    def named(folder: Path) -> None:
        if (folder / "a.json").stat().st_size < 5:
            raise PathOutside("../x")

    found = fuzz_reader(toy(named), 1, 0, tmp_path)
    assert found["escaped"] > 3 and found["read"] > 3


@pytest.mark.parametrize("change", BYTES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("content", [b"", b"x", bytes(range(200))])
def test_bytes_are_changed(change: Any, content: bytes) -> None:
    made = {change(content, Random(seed)) for seed in range(40)}
    assert made - {content} or len(content) < 2


@pytest.mark.parametrize("name", STRUCTURED)
def test_values_are_changed_in_what_stays_a_file_of_its_kind(name: str, tmp_path: Path) -> None:
    valid = {
        ".json": b'{"a": [1, "x"]}',
        ".jsonl": b'{"a": 1}\n{"a": 2}\n',
        ".yaml": b"a: [1, x]\n",
        ".safetensors": (9).to_bytes(8, "little") + b'{"a": 1} ' + bytes(16),
        ".npy": b"\x93NUMPY\x01\x00\x3b\x00{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}   \n" + bytes(16),
    }[name]
    made = {mutated(f"x{name}", valid, Random(seed), tmp_path / "outside") for seed in range(80)}
    assert len(made) > 30 and any(b"outside" in one or b"/etc/passwd" in one or b"__import__" in one for one in made)


def test_the_tables_hold_what_they_promise() -> None:
    assert len(BOMB) < 1000 and len(yaml.compose(BOMB).value) == 12
    assert any("python/object/apply" in one for one in YAML) and max(map(len, JSON)) > 100_000


@pytest.mark.long
def test_a_few_dozen_mutants_of_every_file_are_read_or_refused(tmp_path: Path, tiny: Path) -> None:
    report = tmp_path / "fuzz.json"
    arguments = [
        "--inputs",
        str(MUTANTS),
        "--thin",
        "9",
        "--seed",
        "1",
        "--run",
        str(tiny / "runs" / "tiny"),
        "-o",
        str(report),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", *arguments], capture_output=True, text=True, check=False
    )
    content = json.loads(report.read_text())
    assert content["wrong"] == [] and done.returncode == 0, done.stdout
    assert len(content["readers"]) > 25 and content["inputs"] > 20 * MUTANTS
    assert all(one["inputs"] == one["read"] + one["refused"] > MUTANTS / 5 for one in content["readers"].values())
    assert min(content["counts"]["read"], content["counts"]["refused"]) > 100


def test_the_page_shows_what_was_found() -> None:
    root = Path(__file__).parents[2]
    report = json.loads((root / "results/fuzz.json").read_text(encoding="utf-8"))
    page = " ".join((root / "docs/explanation/withstands.md").read_text(encoding="utf-8").split())
    counts = report["counts"]
    assert f"{report['inputs']:,} inputs to {len(report['readers'])} readers" in page
    assert (
        f"{counts['read']:,} were read, {counts['refused']:,} refused in one sentence; {counts['crashed']} crashes"
        in page
    )
