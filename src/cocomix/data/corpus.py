"""The corpus on disk, and writing it from a text source in one pass with one document in memory.

- A corpus is a folder of JSON-lines files for each split, and a manifest with counts and checksums. In the first layout
  `train.jsonl` lies beside the manifest and is read as a split of one file.
- `Splitter` holds out whole documents, spread over the source's order (for dated sources: over the eras).
- `CorpusWriter` resumes after a kill from its last commit, to the same bytes: the length of the files, the place in
  the source and the state of the splitters are committed together. A source that changed meanwhile is read again up to
  that place, and refused if its texts are others.
"""

import hashlib
import json
import operator
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cocomix.data.sources import Document, Skipped, Tally, TextSource
from cocomix.utils.advice import delete, for_folder
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import (
    FileSeries,
    combined,
    parse_json,
    read_json,
    read_sealed,
    sha256,
    write_sealed,
    write_text,
)
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
            raise CocomixError(f"{folder} holds no corpus; run {for_folder('cocomix corpus', self.folder)}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CocomixError(
                f"{self.folder / MANIFEST} is damaged ({error}); {_redo_hint(self.folder / 'train' / MANIFEST)}"
            ) from None

    def files(self, split: str) -> list[dict[str, Any]]:
        """Entries of the files of `split`, in order."""
        if split not in self.splits:
            raise CocomixError(
                f"{self.folder} holds no corpus with a {split} split; run {for_folder('cocomix corpus', self.folder)}"
            )
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
    folder = path.parent.parent
    return f"{delete(folder)} and run {for_folder('cocomix corpus', folder)} again"


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


SKIPPED, REASONS = "skipped.jsonl", "skipped-reasons.json"
STATE = "corpus-so-far.json"
REPORTED = 100
"""Bad records that are listed one by one; all are counted."""
REPORT_SECONDS = 0.5

Progress = Callable[[int, int | None, dict[str, Any]], None]


class _Part:
    """What came from one source of a mixture, or from the only source; JSON-able as `state`."""

    def __init__(self, val_fraction: float, test_fraction: float, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.seen, self.skipped = state.get("seen", 0), state.get("skipped", 0)
        self.documents, self.chars = state.get("documents", 0), state.get("chars", 0)
        self.splitter = Splitter(val_fraction, test_fraction, state.get("owed"))

    def counts(self) -> dict[str, int]:
        counts = {"documents": self.documents, "chars": self.chars}
        return counts | ({"skipped": self.skipped} if self.skipped else {})

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen, "skipped": self.skipped, **self.counts(), "owed": self.splitter.owed}


class _ReadSoFar:
    """Tells whether a source still gives the records it gave: how many, their checksum, and the source's own stamp."""

    def __init__(self, state: Mapping[str, Any] | None) -> None:
        state = state or {}
        self.stamp: str | None = state.get("stamp")
        self.records, self.checksum = state.get("records", 0), state.get("checksum", "")

    def add(self, record: Document | Skipped) -> None:
        self.records += 1
        content = (record.id, record.text) if isinstance(record, Document) else (record.place, record.reason)
        text = "\0".join((self.checksum, *content))
        self.checksum = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()

    def state(self) -> dict[str, Any]:
        return {"stamp": self.stamp, "records": self.records, "checksum": self.checksum}

    def check(self, source: TextSource, folder: Path) -> None:
        """Compare `source` with what was read of it, if it changed since; all of that is read again then.

        Raises:
            CocomixError: its records are others.
        """
        before, self.stamp = self.stamp, source.stamp()
        if before in (None, self.stamp):
            return
        again = _ReadSoFar(None)
        for record in islice(source.records(), self.records):
            again.add(record)
        if (again.records, again.checksum) != (self.records, self.checksum):
            raise CocomixError(
                f"{source} changed since the stopped command read {self.records} records of it, and the two would be"
                f" mixed; put it back as it was, or start over: rm -r {shlex.quote(str(folder))}"
            )
        warnings.warn(
            f"{source} changed since the stopped command, but not in what that had read; resuming", stacklevel=2
        )


class CorpusWriter:
    """Writes `text/{train,val,test}/*.jsonl`, `text/corpus.json` and, for bad records, `skipped.jsonl`.

    `skipped-reasons.json` counts bad records, and what the source left out, by reason with an example of each.
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
        self._reasons = Tally(state.get("reasons"))
        self._left_out: dict[str, dict[str, Any]] = state.get("left_out", {})
        self._read_so_far = _ReadSoFar(state.get("read"))
        self._fractions = val_fraction, test_fraction
        parts = state.get("parts", {"": state} if state else {})  # an earlier version kept one part's at the top
        self._parts = {name: _Part(*self._fractions, part) for name, part in parts.items()}
        self._open: dict[str, dict[str, int]] = state.get("open", {name: _nothing() for name in SPLITS})
        self._totals: dict[str, dict[str, int]] = state.get("totals", {name: _nothing() for name in SPLITS})
        commits = state.get("series", {})
        self._series = {name: FileSeries(folder / "text" / name, "{:05d}.jsonl", commits.get(name)) for name in SPLITS}

    def write(self, source: TextSource, progress: Progress) -> dict[str, Any]:
        """Read `source` to its end and finish the corpus.

        Returns:
            `{"splits": {name: {documents, chars, sha256}}}`, `skipped`, the number of bad records, if any, and of a
            mixture what each source contributed, `{"mix": {name: {share, documents, chars}}}`.

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
        return self._finish(source)

    def _read(self, source: TextSource, progress: Progress) -> None:
        self._read_so_far.check(source, self.folder)
        source.left_out = Tally(self._left_out)
        started = committed = reported = time.monotonic()
        before = self.seen
        for record in source.records(self._place):
            self._read_so_far.add(record)
            finished = self._add(record, source.part)
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
        if source.stamp() != self._read_so_far.stamp:
            warnings.warn(
                f"{source} changed while it was read; delete the corpus and run the command again for all of it",
                stacklevel=2,
            )

    def _add(self, record: Document | Skipped, part_name: str) -> bool:
        """Take one record; whether a file was finished with it."""
        part = self._parts.setdefault(part_name, _Part(*self._fractions))
        if isinstance(record, Skipped):
            self.skipped += record.count
            part.skipped += record.count
            self._reasons.add(record.reason, record.place, record.count)
            if len(self._reports) < REPORTED:
                self._reports.append({"place": record.place, "reason": record.reason})
            return False
        self.seen += 1
        part.seen += 1
        if (part.seen - 1) % self.every:
            return False
        name = part.splitter.take()  # each source's own: in a regular mixture every n-th document may be one source's
        part.documents += 1
        part.chars += len(record.text)
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
            "reasons": self._reasons.entries,
            "left_out": self._left_out,
            "read": self._read_so_far.state(),
            "parts": {name: part.state() for name, part in self._parts.items()},
        }
        write_sealed(self.folder / STATE, state, durable=True)

    def _resumed_state(self) -> dict[str, Any]:
        try:
            state = read_sealed(self.folder / STATE)
        except (OSError, ValueError):
            return {}
        return state if state.get("settings") == self._settings else {}

    def _finish(self, source: TextSource) -> dict[str, Any]:
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
        (self.folder / REASONS).unlink(missing_ok=True)
        if self._reasons.count or self._left_out:
            reasons = {"skipped": self._reasons.entries, "left_out": self._left_out}
            write_text(self.folder / REASONS, json.dumps(reasons, indent=1))
        manifest = {"format": 2, "splits": {name: counts | files[name] for name, counts in splits.items()}}
        write_sealed(self.folder / "text" / MANIFEST, manifest)
        figures = {"splits": splits} | ({"skipped": self.skipped} if self.skipped else {})
        if source.shares():
            nothing = _Part(*self._fractions)
            mix = {name: {"share": share} for name, share in source.shares().items()}
            figures["mix"] = {name: part | self._parts.get(name, nothing).counts() for name, part in mix.items()}
        return figures


def passed_over(folder: Path) -> dict[str, Tally]:
    """What a finished corpus `skipped` and `left_out`, by reason; of an earlier version, nothing is known."""
    try:
        reasons = read_json(folder / REASONS)
        tallies = {name: Tally(reasons[name]) for name in ("skipped", "left_out")}
        return {name: tally for name, tally in tallies.items() if tally.count}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _nothing() -> dict[str, int]:
    return {"documents": 0, "chars": 0}
