"""What is fuzzed: a reader, with valid files for it and helpers that damage them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocomix.utils.files import SEAL, write_sealed

Work = Callable[[Path], object]


class PathOutside(Exception):
    """A reader accepted a path that leads out of the folder."""


@dataclass(frozen=True)
class Reader:
    """A reader that is fuzzed.

    Attributes:
        name: name that `--only` takes.
        make: writes small valid files into an empty folder.
        read: reads them, including everything that is normally read only when needed.
        seal: corrects the checksums in the files, so that half of the mutants get past them.
        hostile: inputs made by hand; each function damages the valid folder.
        anywhere: whether the input comes from the user and may name any file to be read.
        share: number of inputs relative to the other readers; less than 1 for slow ones.
        works_in: further folders it may read and write.
    """

    name: str
    make: Work
    read: Work
    seal: Work | None = None
    hostile: Mapping[str, Work] = field(default_factory=dict)
    anywhere: bool = False
    share: float = 1.0
    works_in: tuple[Path, ...] = ()


def manifest_entry(path: Path) -> dict[str, Any]:
    """Return size and checksum of a file, as manifests store them."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def reseal(manifest: Path, entries: Callable[[Any], Iterator[tuple[dict[str, Any], str]]]) -> None:
    """Correct the sizes and checksums in a manifest; `entries` yields (entry, file name) for each listed file."""
    try:
        content = json.loads(manifest.read_bytes())
        for entry, file in entries(content):
            entry |= {key: value for key, value in manifest_entry(manifest.parent / file).items() if key in entry}
        write_sealed(manifest, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # too damaged to be sealed


def replace_file(name: str, content: bytes | str) -> Work:
    """Return a function that writes `content` to the file `name` of a folder."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit_json(name: str, change: Callable[[Any], object]) -> Work:
    """Return a function that applies `change` to the content of the JSON file `name` of a folder."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        change(content)
        if isinstance(content, dict) and SEAL in content:
            write_sealed(folder / name, content)
        else:
            (folder / name).write_text(json.dumps(content))

    return edit


def check_inside(folder: Path, *paths: Path) -> None:
    """Check by their names that `paths` are below `folder`.

    Raises:
        PathOutside: if one is not.
    """
    for path in paths:
        if ".." in path.parts or not path.is_relative_to(folder):
            raise PathOutside(str(path))
