"""Feed every reader of cocomix hostile files, and check that each file is read or refused in one sentence.

    python -m benchmarks.fuzz --inputs 2000 --seed 0 -o results/fuzz.json [--only sae-own ...]

The inputs of a reader are a table of hostile contents in place of each of its files, inputs made by hand for this
reader, and mutants of small valid files (`benchmarks.fuzz.mutations`). Half of the mutants get correct checksums.

Outcomes: `read` (accepted), `refused` (`CocomixError` with one printable sentence), or wrong: `crashed`, `hung`,
`memory`, `escaped` (`benchmarks.fuzz.watched_reading`, `benchmarks.fuzz.audit_hook`). Only the reading is judged, not
the meaning: that no damage passes unnoticed is the task of checksums and seals, and is tested by `benchmarks.faults`.

`--number N` repeats one input and leaves its files in the printed folder.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}

from benchmarks.fuzz import explorer_readers, model_readers, run_readers, text_readers
from benchmarks.fuzz.audit_hook import ForbiddenAccess
from benchmarks.fuzz.hostile_values import FILE_CONTENTS
from benchmarks.fuzz.mutations import PATH_CHANGES, mutated
from benchmarks.fuzz.reader import PathOutside, Reader
from benchmarks.fuzz.watched_reading import MAX_GROWTH, TIMEOUT, Task, read_watched
from benchmarks.provenance import provenance
from cocomix.utils.console import use_any_encoding

OUTCOMES = ("read", "refused", "crashed", "hung", "memory", "escaped")
WRONG = OUTCOMES[2:]
PATH_CHANGE_SHARE = 0.04
"""Share of the mutants in which a file is missing, a folder or a link."""


@dataclass
class ReaderInputs:
    """The numbered inputs of a reader.

    An input is written to `home/input`. `home/outside` holds copies of the valid files that must not be touched.
    `home/temporary` takes the place of the system's temporary folder, where readers keep their locks.
    """

    reader: Reader
    home: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.folder, self.outside, self.temporary = (self.home / name for name in ("input", "outside", "temporary"))
        for folder in (self.folder, self.outside, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.reader.make(self.folder)
        self.files = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        for name, content in self.files.items():
            (self.outside / Path(name).name).write_bytes(content)

    @cached_property
    def table(self) -> list[tuple[str, Callable[[], object]]]:
        """The inputs that are not drawn at random: a description and a function that writes the input."""
        inputs: list[tuple[str, Callable[[], object]]] = [
            (description, partial(change, self.folder)) for description, change in self.reader.hostile.items()
        ]
        for name in self.files:
            path = self.folder / name
            for description, content in FILE_CONTENTS.items():
                inputs.append((f"{name}: {description}", partial(path.write_bytes, content)))
            for description, path_change in PATH_CHANGES.items():
                inputs.append((f"{name} {description}", partial(path_change, path, self.outside)))
        return inputs

    def restore(self) -> None:
        """Write the valid files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def warm(self) -> object:
        """Read the valid files, so that libraries import everything they need before reading is watched."""
        tempfile.tempdir = str(self.temporary)
        self.restore()
        return self.reader.read(self.folder)

    def prepare(self, number: int) -> str:
        """Write input `number` and return its description."""
        self.restore()
        if number < len(self.table):
            description, write = self.table[number]
            write()
            return description
        rng = Random(f"{self.seed} {self.reader.name} {number}")
        name = rng.choice(list(self.files))
        path = self.folder / name
        if rng.random() < PATH_CHANGE_SHARE:
            description = rng.choice(list(PATH_CHANGES))
            PATH_CHANGES[description](path, self.outside)
            return f"{name} {description}"
        content = mutated(name, self.files[name], rng, self.outside)
        path.write_bytes(content)
        sealed = self.reader.seal is not None and rng.random() < 0.5
        if sealed and self.reader.seal is not None:
            self.reader.seal(self.folder)
        difference = _first_difference(self.files[name], content)
        return f"{name}{', sealed' if sealed else ''}, {len(content)} bytes, {difference}"

    def read(self) -> object:
        """Read the input that was written."""
        try:
            return self.reader.read(self.folder)
        except PathOutside as error:
            raise ForbiddenAccess(str(error)) from error

    def task(self) -> Task:
        """Return the task for `read_watched`."""
        return Task(
            self.prepare,
            self.read,
            self.warm,
            (self.folder, self.temporary, *self.reader.works_in),
            anywhere=self.reader.anywhere,
        )


def _first_difference(valid: bytes, content: bytes) -> str:
    """Describe where a mutant first differs from the valid content, with a few bytes from there."""
    pairs = enumerate(zip(valid, content, strict=False))
    at = next((position for position, (before, after) in pairs if before != after), len(content))
    piece = content[max(0, at - 12) : at + 36]
    return f"from byte {at}: {piece!r}" if piece.isascii() else f"from byte {at}: {piece.hex(' ')}"


def fuzz_reader(reader: Reader, inputs: int, seed: int, home: Path, thin: int = 1) -> dict[str, Any]:
    """Fuzz one reader.

    Args:
        reader: the reader.
        inputs: number of mutants, before the reader's own `share`.
        seed: seed of the mutants.
        home: folder for the inputs.
        thin: of the table, take only every `thin`-th input.

    Returns:
        counts of outcomes, the slowest reading in seconds, and all wrong outcomes in full.
    """
    started, reader_inputs = time.monotonic(), ReaderInputs(reader, home, seed)
    table = len(reader_inputs.table)
    numbers = [*range(0, table, thin), *range(table, table + round(inputs * reader.share))]
    counts, wrong, slowest = Counter[str](), list[dict[str, Any]](), 0.0
    for result in read_watched(reader_inputs.task(), numbers):
        counts[result["outcome"]] += 1
        slowest = max(slowest, result.get("seconds", TIMEOUT))
        if result["outcome"] in WRONG:
            wrong.append(result | {"reader": reader.name})
    return {
        "inputs": len(numbers),
        "from_the_table": sum(number < table for number in numbers),
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        "seconds": round(time.monotonic() - started, 1),
        "slowest": slowest,
        "wrong": wrong,
    }


def all_readers(run: Path, kept: Path) -> dict[str, Reader]:
    """Return all readers by name; those that need the finished tiny run `run` keep copies of it in `kept`."""
    explorer = explorer_readers.readers(run, kept)
    readers = (*text_readers.READERS, *model_readers.READERS, *run_readers.READERS, *explorer)
    return {reader.name: reader for reader in readers}


def main() -> None:
    """Parse the command line, fuzz the readers one after the other, and write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=2000, help="mutants per reader, in addition to its table")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutants")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/fuzz.json"), help="report file")
    parser.add_argument("--thin", type=int, default=1, help="take only every N-th input of the tables")
    parser.add_argument("--only", nargs="*", help="readers; default: all")
    parser.add_argument("--run", type=Path, help="a finished tiny run for the explorer; default: make one")
    parser.add_argument("--number", type=int, help="write and read this one input of the reader in --only")
    arguments = parser.parse_args()
    origin = provenance(threads=1)
    with tempfile.TemporaryDirectory(prefix="cocomix-fuzz-") as folder:
        table = all_readers(arguments.run or _tiny_run(Path(folder)), Path(folder) / "kept")
        if unknown := set(arguments.only or ()) - table.keys():
            parser.error(f"there is no reader {unknown.pop()}; choose from {', '.join(table)}")
        names = arguments.only or list(table)
        if arguments.number is not None:
            _repeat(table[names[0]], arguments.number, arguments.seed)
            return
        results: dict[str, Any] = {}
        for name in names:
            results[name] = fuzz_reader(
                table[name], arguments.inputs, arguments.seed, Path(folder) / name, arguments.thin
            )
            counts = {key: value for key, value in results[name].items() if key != "wrong"}
            print(name, counts, *(f"\n  {entry}" for entry in results[name]["wrong"][:20]), flush=True)
    report = {
        **origin,
        "seed": arguments.seed,
        "bounds": {"seconds": TIMEOUT, "growth_bytes": MAX_GROWTH},
        "inputs": sum(result["inputs"] for result in results.values()),
        "counts": {outcome: sum(result[outcome] for result in results.values()) for outcome in OUTCOMES},
        "seconds": round(sum(result["seconds"] for result in results.values())),
        "readers": {
            name: {key: value for key, value in result.items() if key != "wrong"} for name, result in results.items()
        },
        "wrong": [entry for result in results.values() for entry in result["wrong"]],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(report["inputs"], report["counts"])
    if report["wrong"]:
        sys.exit("some inputs were neither read nor refused in one sentence; the report lists them under `wrong`")


def _tiny_run(folder: Path) -> Path:
    """Make a finished toy run with `cocomix demo --tiny`; takes half a minute."""
    subprocess.run(
        [sys.executable, "-m", "cocomix", "demo", "--tiny"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return folder / "runs" / "tiny"


def _repeat(reader: Reader, number: int, seed: int) -> None:
    """Read one input in this process, so that its whole traceback is printed."""
    home = Path(tempfile.mkdtemp(prefix=f"{reader.name}-{number}-"))
    reader_inputs = ReaderInputs(reader, home, seed)
    reader_inputs.warm()
    print(reader_inputs.prepare(number), f"in {reader_inputs.folder}", sep="\n")
    with contextlib.chdir(reader_inputs.folder):
        print(reader_inputs.read())


if __name__ == "__main__":
    use_any_encoding()
    main()
