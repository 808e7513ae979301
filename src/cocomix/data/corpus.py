"""The corpus on disk, and writing it from a text source in one pass with one document in memory.

- A corpus is a folder of JSON-lines files for each split, and a manifest with counts and checksums. In the first layout
  `train.jsonl` lies beside the manifest and is read as a split of one file.
- `Splitter` holds out whole documents, spread over the source's order (for dated sources: over the eras).
- `CorpusWriter` resumes after a kill from its last commit, to the same bytes: the length of the files, the place in
  the source and the state of the splitter are committed together.
"""

import hashlib
import json
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cocomix.data.sources import Document, Skipped, TextSource
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import FileSeries, combined, parse_json, read_sealed, sha256, write_sealed, write_text
from cocomix.utils.integrity import is_inside

SPLITS = ("train", "val", "test")


class Splitter:
    """Assigns whole documents to `train`, `val` and `test`, systematically and without randomness.

    A held-out split takes a document whenever its share has grown by a whole document. The two splits are half a period
    apart, so that they rarely compete for the same document.

    Attributes:
        owed: documents each held-out split is due, with fractions; the whole state of the splitter.
    """

    def __init__(self, val_fraction: float, test_fraction: float, owed: Mapping[str, float] | None = None) -> None:
        self._grows = {"val": val_fraction, "test": test_fraction}
        self.owed = dict(owed or {"val": 0.5, "test": 0.0})

    def take(self) -> str:
        """Split of the next document."""
        for name, fraction in self._grows.items():
            self.owed[name] += fraction
        taker = next((name for name in self._grows if self.owed[name] >= 1), "train")
        if taker != "train":
            self.owed[taker] -= 1
        return taker


def check_counts(documents: Mapping[str, int]) -> None:
    """Refuse a corpus in which a split got no document.

    Raises:
        CocomixError: no documents, or too few for every split to get one.
    """
    if not any(documents.values()):
        raise CocomixError("the corpus has no documents; check its path and options")
    empty = [name for name, count in documents.items() if not count]
    if empty:
        raise CocomixError(
            f"{sum(documents.values())} documents are too few to hold out whole ones for {' and '.join(empty)};"
            " add documents or raise corpus.val_fraction and corpus.test_fraction"
        )


MANIFEST = "corpus.json"


class Corpus:
    """Read access to a finished corpus.

    Attributes:
        splits: by name, the entries of a split's files in order: `file` (below the folder), `documents`, `chars`,
            `sha256`.

    Raises:
        CocomixError: there is no corpus in `folder`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.splits: dict[str, list[dict[str, Any]]] = {}
        try:
            splits = read_sealed(self.folder / MANIFEST)["splits"]
            for name, counts in splits.items():
                entries = counts.get("files", [{**counts, "file": f"{name}.jsonl"}])
                self.splits[name] = [_entry(entry) for entry in entries]
        except PermissionError:
            raise
        except FileNotFoundError:
            raise CocomixError(f"{folder} holds no corpus; run `cocomix corpus`") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CocomixError(
                f"{self.folder / MANIFEST} is damaged ({error}); delete {folder} and run `cocomix corpus` again"
            ) from None

    def files(self, split: str) -> list[dict[str, Any]]:
        """Entries of the files of `split`, in order."""
        if split not in self.splits:
            raise CocomixError(f"{self.folder} holds no corpus with a {split} split; run `cocomix corpus`")
        return self.splits[split]

    def count(self, split: str, what: str) -> int:
        """`documents` or `chars` of a split."""
        return sum(entry[what] for entry in self.files(split))

    @property
    def fingerprint(self) -> str:
        """sha256 over all files' checksums, 64 hex digits."""
        sums = [entry["sha256"] for split in sorted(self.splits) for entry in self.splits[split]]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def check(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CocomixError: one is missing or was altered.
        """
        for entries in self.splits.values():
            for entry in entries:
                check_file(self.folder / entry["file"], entry["sha256"])

    def documents(self, split: str) -> Iterator[Document]:
        """Documents of `split` in their order; each file is checked before its first one is given out."""
        for entry in self.files(split):
            yield from read_file(self.folder / entry["file"], entry["sha256"])


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """The parts of a manifest's entry that are used.

    Raises:
        ValueError, TypeError, KeyError: it names a file outside the folder, or a value is another type, or missing.
    """
    if not is_inside(entry["file"]):
        raise ValueError(f"{entry['file']!r} is outside the folder")
    counts = {name: operator.index(entry[name]) for name in ("documents", "chars")}
    return {"file": entry["file"], **counts, "sha256": str(entry["sha256"])}


def read_file(path: Path, checksum: str) -> Iterator[Document]:
    """Documents of one corpus file, in their order, after checking it as `check_file` does; in memory is one."""
    check_file(path, checksum)
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                document = _document(parse_json(line.decode("utf-8")))
            except (ValueError, TypeError, KeyError) as error:
                raise CocomixError(
                    f"line {number} of the corpus file {path} is not a document ({error}); {_redo_hint(path)}"
                ) from error
            yield document


def _document(row: Any) -> Document:
    if not (isinstance(row["id"], str) and isinstance(row["text"], str) and isinstance(row["meta"], dict)):
        raise TypeError("a value is of another type")
    row["text"].encode()  # half a character cannot be tokenised
    return Document(row["id"], row["text"], row["meta"])


def _redo_hint(path: Path) -> str:
    return f"delete {path.parent.parent} and run `cocomix corpus` again"


def check_file(path: Path, checksum: str) -> None:
    """Compare a corpus file with its checksum.

    Raises:
        CocomixError: the file is missing or was altered.
    """
    hint = _redo_hint(path)
    try:
        same = sha256(path) == checksum
    except FileNotFoundError:
        raise CocomixError(f"the corpus file {path} is missing; {hint}") from None
    if not same:
        raise CocomixError(f"the corpus file {path} was altered; {hint}")


SKIPPED = "skipped.jsonl"
STATE = "corpus-so-far.json"
REPORTED = 100
"""Bad records that are listed one by one; all are counted."""
REPORT_SECONDS = 0.5

Progress = Callable[[int, int | None, dict[str, Any]], None]


class CorpusWriter:
    """Writes `text/{train,val,test}/*.jsonl`, `text/corpus.json` and, for bad records, `skipped.jsonl`.

    `corpus-so-far.json`, from which a killed writer resumes, stays beside them: delete it once they are safe.

    Args:
        folder: where to write; the state of a killed writer there is resumed.
        every: keep every n-th document of the source.
        val_fraction: share of the documents held out for validation; `test_fraction` likewise.
        file_bytes: a file ends before the document that would make it larger than this.
        commit_seconds: at most this much work is lost to a kill.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int = 1,
        val_fraction: float,
        test_fraction: float,
        file_bytes: int = 32_000_000,
        commit_seconds: float = 5.0,
    ) -> None:
        self.folder, self.every, self.file_bytes, self.commit_seconds = folder, every, file_bytes, commit_seconds
        self._settings = {"every": every, "val": val_fraction, "test": test_fraction, "file_bytes": file_bytes}
        state = self._resumed_state()
        self._place = state.get("place")
        self.seen: int = state.get("seen", 0)
        self.skipped: int = state.get("skipped", 0)
        self._reports: list[dict[str, str]] = state.get("reports", [])
        self._splitter = Splitter(val_fraction, test_fraction, state.get("owed"))
        self._open: dict[str, dict[str, int]] = state.get("open", {name: _nothing() for name in SPLITS})
        self._totals: dict[str, dict[str, int]] = state.get("totals", {name: _nothing() for name in SPLITS})
        commits = state.get("series", {})
        self._series = {name: FileSeries(folder / "text" / name, "{:05d}.jsonl", commits.get(name)) for name in SPLITS}

    def write(self, source: TextSource, progress: Progress) -> dict[str, Any]:
        """Read `source` to its end and finish the corpus.

        Returns:
            `{"splits": {name: {documents, chars, sha256}}}`, and `skipped`, the number of bad records, if any.

        Raises:
            CocomixError: the source cannot be read, holds nothing, or too little for every split.
        """
        try:
            self._read(source, progress)
        finally:
            for series in self._series.values():
                series.close()
        try:
            if not self.seen:
                raise source.nothing()
            check_counts({name: totals["documents"] for name, totals in self._totals.items()})
        except CocomixError:
            (self.folder / STATE).unlink(missing_ok=True)  # texts added to the source may come before its end
            raise
        return self._finish()

    def _read(self, source: TextSource, progress: Progress) -> None:
        started = committed = reported = time.monotonic()
        before = self.seen
        for record in source.records(self._place):
            finished = self._add(record)
            now = time.monotonic()
            if finished or now - committed > self.commit_seconds:
                committed = now
                self._commit(source)
            if now - reported > REPORT_SECONDS:
                reported = now
                note = {
                    "documents": self.seen,
                    "characters": sum(totals["chars"] for totals in self._totals.values()),
                    "documents/s": round((self.seen - before) / (now - started)),
                }
                progress(self.seen, None, note | ({"skipped": self.skipped} if self.skipped else {}))
        for name in SPLITS:
            self._cut(name)

    def _add(self, record: Document | Skipped) -> bool:
        """Take one record; whether a file was finished with it."""
        if isinstance(record, Skipped):
            self.skipped += record.count
            if len(self._reports) < REPORTED:
                self._reports.append({"place": record.place, "reason": record.reason})
            return False
        self.seen += 1
        if (self.seen - 1) % self.every:
            return False
        name = self._splitter.take()
        series = self._series[name]
        content = {"id": record.id, "text": record.text, "meta": record.meta}
        line = (json.dumps(content, ensure_ascii=False) + "\n").encode()
        full = series.size > 0 and series.size + len(line) > self.file_bytes
        if full:
            self._cut(name)
        series.write(line)
        for counts in (self._open[name], self._totals[name]):
            counts["documents"] += 1
            counts["chars"] += len(record.text)
        return full

    def _cut(self, name: str) -> None:
        self._series[name].cut(**self._open[name])
        self._open[name] = _nothing()

    def _commit(self, source: TextSource) -> None:
        state = {
            "settings": self._settings,
            "series": {name: series.commit() for name, series in self._series.items()},
            "open": self._open,
            "totals": self._totals,
            "place": source.place(),
            "seen": self.seen,
            "skipped": self.skipped,
            "reports": self._reports,
            "owed": self._splitter.owed,
        }
        write_sealed(self.folder / STATE, state, durable=True)

    def _resumed_state(self) -> dict[str, Any]:
        try:
            state = read_sealed(self.folder / STATE)
        except (OSError, ValueError):
            return {}
        return state if state.get("settings") == self._settings else {}

    def _finish(self) -> dict[str, Any]:
        splits = {
            name: {**self._totals[name], "sha256": combined([entry["sha256"] for entry in series.files])}
            for name, series in self._series.items()
        }
        files = {
            name: {"files": [{**entry, "file": f"{name}/{entry['file']}"} for entry in series.files]}
            for name, series in self._series.items()
        }
        (self.folder / SKIPPED).unlink(missing_ok=True)
        if self._reports:
            lines = (json.dumps(report) + "\n" for report in self._reports)
            write_text(self.folder / SKIPPED, "".join(lines))
        manifest = {"format": 2, "splits": {name: counts | files[name] for name, counts in splits.items()}}
        write_sealed(self.folder / "text" / MANIFEST, manifest)
        return {"splits": splits} | ({"skipped": self.skipped} if self.skipped else {})


def _nothing() -> dict[str, int]:
    return {"documents": 0, "chars": 0}
