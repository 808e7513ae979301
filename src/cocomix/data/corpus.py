"""From a source to a corpus on disk, in one pass, with one document in memory.

Killed at any moment, it goes on from its last commit to the same bytes: what a split's files hold, the place in the
source, and what the held-out splits are owed are noted down together.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cocomix.data.document import Document, Skipped
from cocomix.data.reader import MANIFEST
from cocomix.data.source import TextSource
from cocomix.data.split import SPLITS, Splitter, check_counts
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import combined, read_sealed, write_sealed, write_text
from cocomix.utils.series import FileSeries

SKIPPED = "skipped.jsonl"
STATE = "corpus-so-far.json"
REPORTED = 100
"""bad records that are written down one by one; all are counted"""
TELL_SECONDS = 0.5

Progress = Callable[[int, int | None, dict[str, Any]], None]


class CorpusWriter:
    """Writes `text/{train,val,test}/*.jsonl`, `text/corpus.json` and, if there is a need, `skipped.jsonl`.

    Args:
        folder: where; a state that a killed writer left there is taken up.
        every: keep every n-th document of the source.
        val_fraction: share of the documents held out for validation; `test_fraction` likewise.
        file_bytes: a file ends before the document with which it would grow beyond this.
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
        state = self._left_behind()
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
            (self.folder / STATE).unlink(missing_ok=True)  # what is added to the source may come before its end
            raise
        found = self._finish()
        (self.folder / STATE).unlink(missing_ok=True)
        return found

    def _read(self, source: TextSource, progress: Progress) -> None:
        started = committed = told = time.monotonic()
        before = self.seen
        for record in source.records(self._place):
            finished = self._add(record)
            now = time.monotonic()
            if finished or now - committed > self.commit_seconds:
                committed = now
                self._commit(source)
            if now - told > TELL_SECONDS:
                told = now
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
        write_sealed(self.folder / STATE, state)

    def _left_behind(self) -> dict[str, Any]:
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
