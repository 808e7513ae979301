"""All readers, by name."""

from pathlib import Path

import model_readers
import text_readers
from reader import Reader


def readers(run: Path | None, folder: Path) -> dict[str, Reader]:
    """The table; `run` is a finished tiny run to explore, made in `folder` when it is needed and not given."""
    return {one.name: one for one in (*text_readers.READERS, *model_readers.READERS)}
