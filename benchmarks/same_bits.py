"""Compare two copies of a stage's output byte by byte, apart from clock readings.

JSON records are compared without the keys in `CLOCK`. Stopwatches (`seconds.json`) and the files in `FILE_STATUS`,
which hold inodes and times, are left out. Everything else must be equal, and so must the set of files.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLOCK = {
    "stage.json": {"seconds", "tokens_per_second", "wait_share", "made"},
    "report.json": {"created"},
}
"""Keys whose values may differ, by record: seconds, rates, and when and where the record was made.

A report repeats the seconds of finished stages, so those must be the same.
"""
CLOCK_OF_NEW_RUN = {
    "stage.json": CLOCK["stage.json"] | {"inputs_outcome", "files", "seal"},
    "report.json": CLOCK["report.json"] | CLOCK["stage.json"] | {"command", "reused", "label_seconds"},
}
"""Keys that may differ between two runs that were both made from the start: hashes of seconds differ as well."""
STOPWATCHES = {"seconds.json"}
FILE_STATUS = {".checked.json", "verified.json", ".verified.lock"}
STAMP = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?")


def without(value: Any, keys: set[str]) -> Any:
    """Return `value` without the keys `keys`, at any depth."""
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def contents(*paths: Path, clock: Mapping[str, set[str]] = CLOCK) -> dict[str, str]:
    """Return the sha256 of every file at or below `paths`, by name; records are hashed without clock readings.

    Args:
        clock: keys to leave out, by the record's file name.
    """
    hashes: dict[str, str] = {}
    for root in paths:
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in files:
            if file.is_file() and file.name not in STOPWATCHES | FILE_STATUS:
                hashes[str(file.relative_to(root.parent))] = hashlib.sha256(_comparable(file, clock)).hexdigest()
    return hashes


def _comparable(file: Path, clock: Mapping[str, set[str]]) -> bytes:
    content = file.read_bytes()
    if file.name in clock:
        return json.dumps(without(json.loads(content), clock[file.name]), sort_keys=True).encode()
    return STAMP.sub(b"", content) if file.suffix == ".html" else content


def differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """Return the names of files that differ or exist on one side only."""
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
