"""Feed every reader of cocomix files that nobody meant, and see that each is read or refused in one sentence.

    python -m benchmarks.fuzz --inputs 2000 --seed 0 -o results/fuzz.json [--only sae-own ...]

A reader's inputs are a table of hostile contents in the place of each of its files, those made by hand for it, and
mutants of small valid files (`mutations`), checksums put right again in half of them. Outcomes: `read` (accepted),
`refused` (`CocomixError`, one printable sentence), or wrong: `crashed`, `hung`, `memory`, `escaped` (`watched`,
`fence`). Judged is the reading, not the meaning: that damage never passes for good is the business of checksums and
seals, and of `faults.py`.

`--number N` shows one input again and leaves its files in the folder printed.
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
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}

from benchmarks.fuzz.audit_hook import Escaped
from benchmarks.fuzz.hostile_values import WHOLE
from benchmarks.fuzz.mutations import PLACES, mutated
from benchmarks.fuzz.reader import Outside, Reader
from benchmarks.fuzz.watched_reading import GROWTH, SECONDS, Task, watch
from benchmarks.provenance import provenance

OUTCOMES = ("read", "refused", "crashed", "hung", "memory", "escaped")
WRONG = OUTCOMES[2:]
AT_PLACES = 0.04
"""Share of inputs in which a file is missing, a folder or a link."""


@dataclass
class Attack:
    """A reader's inputs by number, laid out in `home/input`; `home/outside` holds the same files, not to be touched."""

    reader: Reader
    home: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.folder, self.outside = self.home / "input", self.home / "outside"
        for folder in (self.folder, self.outside):
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
        """The inputs that are not drawn."""
        made = [(what, lambda spoil=spoil: spoil(self.folder)) for what, spoil in self.reader.hostile.items()]
        for name in self.files:
            path = self.folder / name
            made += [(f"{name}: {what}", lambda path=path, to=to: path.write_bytes(to)) for what, to in WHOLE.items()]
            made += [
                (f"{name} {what}", lambda path=path, how=how: how(path, self.outside)) for what, how in PLACES.items()
            ]
        return made

    def restore(self) -> None:
        """Lay out what is valid."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def warm(self) -> object:
        """Read what is valid; what a link or a twin beside it makes libraries import is imported, too."""
        self.restore()
        return self.reader.read(self.folder)

    def prepare(self, number: int) -> str:
        """Lay out input `number`; returns what it is, in words."""
        self.restore()
        if number < len(self.table):
            what, spoil = self.table[number]
            spoil()
            return what
        draw = Random(f"{self.seed} {self.reader.name} {number}")
        name = draw.choice(list(self.files))
        path = self.folder / name
        if draw.random() < AT_PLACES:
            what = draw.choice(list(PLACES))
            PLACES[what](path, self.outside)
            return f"{name} {what}"
        content = mutated(name, self.files[name], draw, self.outside)
        path.write_bytes(content)
        sealed = self.reader.seal is not None and draw.random() < 0.5
        if sealed and self.reader.seal is not None:
            self.reader.seal(self.folder)
        return f"{name}{', sealed' if sealed else ''}, {len(content)} bytes, {_shown(self.files[name], content)}"

    def read(self) -> object:
        """Read what is laid out."""
        try:
            return self.reader.read(self.folder)
        except Outside as error:
            raise Escaped(str(error)) from error

    def task(self) -> Task:
        """For `watch`."""
        return Task(
            self.prepare, self.read, self.warm, (self.folder, *self.reader.works_in), anywhere=self.reader.anywhere
        )


def _shown(valid: bytes, content: bytes) -> str:
    """Where a mutant begins to differ, and a few bytes from there on."""
    at = next((n for n, (one, other) in enumerate(zip(valid, content, strict=False)) if one != other), len(content))
    piece = content[max(0, at - 12) : at + 36]
    return f"from byte {at}: {piece!r}" if piece.isascii() else f"from byte {at}: {piece.hex(' ')}"


def attacked(reader: Reader, inputs: int, seed: int, home: Path, thin: int = 1) -> dict[str, Any]:
    """Counts of a reader's outcomes, the wrong ones in full, and its slowest; of its table every `thin`-th input."""
    begun, attack = time.monotonic(), Attack(reader, home, seed)
    table = len(attack.table)
    numbers = [*range(0, table, thin), *range(table, table + round(inputs * reader.share))]
    counts, wrong, slowest = Counter[str](), list[dict[str, Any]](), 0.0
    for found in watch(attack.task(), numbers):
        counts[found["outcome"]] += 1
        slowest = max(slowest, found.get("seconds", SECONDS))
        if found["outcome"] in WRONG:
            wrong.append(found | {"reader": reader.name})
    return {
        "inputs": len(numbers),
        "from_the_table": sum(number < table for number in numbers),
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        "seconds": round(time.monotonic() - begun, 1),
        "slowest": slowest,
        "wrong": wrong,
    }


def main() -> None:
    """Parse the command line, attack the readers one after the other, and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=2000, help="mutants for each reader, beside its table")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/fuzz.json"), help="the report")
    parser.add_argument("--thin", type=int, default=1, help="take every N-th input of the tables alone: a quick look")
    parser.add_argument("--only", nargs="*", help="readers; default: all")
    parser.add_argument("--run", type=Path, help="a finished tiny run to explore; default: one is made")
    parser.add_argument("--number", type=int, help="lay out and read this input of the one reader in --only")
    chosen = parser.parse_args()
    from benchmarks.fuzz.readers import readers

    origin = provenance(threads=1)
    with tempfile.TemporaryDirectory(prefix="cocomix-fuzz-") as folder:
        table = readers(chosen.run or _tiny_run(Path(folder)), Path(folder) / "kept")
        if unknown := set(chosen.only or ()) - table.keys():
            parser.error(f"there is no reader {unknown.pop()}; choose from {', '.join(table)}")
        names = chosen.only or list(table)
        if chosen.number is not None:
            _show(table[names[0]], chosen.number, chosen.seed)
            return
        found: dict[str, Any] = {}
        for name in names:
            found[name] = attacked(table[name], chosen.inputs, chosen.seed, Path(folder) / name, chosen.thin)
            counts = {key: value for key, value in found[name].items() if key != "wrong"}
            print(name, counts, *(f"\n  {one}" for one in found[name]["wrong"][:20]), flush=True)
    report = {
        **origin,
        "seed": chosen.seed,
        "bounds": {"seconds": SECONDS, "growth_bytes": GROWTH},
        "inputs": sum(one["inputs"] for one in found.values()),
        "counts": {outcome: sum(one[outcome] for one in found.values()) for outcome in OUTCOMES},
        "seconds": round(sum(one["seconds"] for one in found.values())),
        "readers": {name: {key: value for key, value in one.items() if key != "wrong"} for name, one in found.items()},
        "wrong": [entry for one in found.values() for entry in one["wrong"]],
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(report, indent=1) + "\n")
    print(report["inputs"], report["counts"])
    if report["wrong"]:
        sys.exit("not all is as it should be")


def _tiny_run(folder: Path) -> Path:
    """A finished run of all stages at toy size, made by `cocomix demo --tiny`; takes half a minute."""
    subprocess.run(
        [sys.executable, "-m", "cocomix", "demo", "--tiny"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return folder / "runs" / "tiny"


def _show(reader: Reader, number: int, seed: int) -> None:
    """One input, read in this process: with its whole traceback."""
    home = Path(tempfile.mkdtemp(prefix=f"{reader.name}-{number}-"))
    attack = Attack(reader, home, seed)
    attack.warm()
    print(attack.prepare(number), f"in {attack.folder}", sep="\n")
    with contextlib.chdir(attack.folder):
        print(attack.read())


if __name__ == "__main__":
    main()
