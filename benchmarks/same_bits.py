"""Whether two copies of a stage's output are the same, byte by byte, apart from readings of a clock.

JSON records are compared without the keys in `CLOCK`; files in `ABOUT_FILES` describe files by inode and time and are
left out, as are stopwatches (`seconds.json`). Everything else, and which files there are, must be equal.
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
"""Keys whose value may differ, by record: seconds, what is divided by them, and when and where it was made.

A report repeats the seconds of stages that are finished, so these must be the same.
"""
ANEW = {
    "stage.json": CLOCK["stage.json"] | {"inputs_outcome", "files", "seal"},
    "report.json": CLOCK["report.json"] | CLOCK["stage.json"] | {"command", "reused", "label_seconds"},
}
"""The same between two runs, each made from the start: hashes of seconds differ, too."""
STOPWATCHES = {"seconds.json"}
ABOUT_FILES = {".checked.json", "verified.json"}
STAMP = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?")


def without(value: Any, keys: set[str]) -> Any:
    """`value` without `keys`, at any depth."""
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def contents(*paths: Path, clock: Mapping[str, set[str]] = CLOCK) -> dict[str, str]:
    """sha256 of every file at or below `paths` by name; of records, of what is not a clock's reading.

    Args:
        clock: keys left out, by the name of the record.
    """
    found: dict[str, str] = {}
    for root in paths:
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in files:
            if file.is_file() and file.name not in STOPWATCHES | ABOUT_FILES:
                found[str(file.relative_to(root.parent))] = hashlib.sha256(_comparable(file, clock)).hexdigest()
    return found


def _comparable(file: Path, clock: Mapping[str, set[str]]) -> bytes:
    content = file.read_bytes()
    if file.name in clock:
        return json.dumps(without(json.loads(content), clock[file.name]), sort_keys=True).encode()
    return STAMP.sub(b"", content) if file.suffix == ".html" else content


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of files that are not the same in both, or in one of them only."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
