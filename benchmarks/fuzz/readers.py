"""All readers, by name."""

from pathlib import Path

from benchmarks.fuzz import explorer_readers as explored_readers
from benchmarks.fuzz import model_readers, run_readers, text_readers
from benchmarks.fuzz.reader import Reader


def readers(run: Path, kept: Path) -> dict[str, Reader]:
    """The table; `run` is a finished tiny run, copied into `kept` by those that need it."""
    explored = explored_readers.readers(run, kept)
    return {one.name: one for one in (*text_readers.READERS, *model_readers.READERS, *run_readers.READERS, *explored)}
