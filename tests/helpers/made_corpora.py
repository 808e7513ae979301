"""Files made for a test, and what a folder holds."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

from cocomix.data.corpus import STATE


def write_parquet(path: Path, texts: list[str | None], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "text": texts}), path, **options)


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished_content(folder: Path) -> dict[str, bytes]:
    """What a finished corpus holds once what a killed writer would resume from is deleted, as its stage does."""
    (folder / STATE).unlink(missing_ok=True)
    return content(folder)
