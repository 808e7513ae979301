"""What a reader under attack is: files it can read, and a way to read them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cocomix.utils.files import SEAL, write_sealed

Work = Callable[[Path], object]


class Outside(Exception):
    """A reader named a path that leads out of the folder."""


@dataclass(frozen=True)
class Reader:
    """One entry of the table.

    Attributes:
        name: as `--only` takes it.
        make: writes valid files into an empty folder, small ones.
        read: reads them; whatever is read later, when it is needed, too.
        seal: puts the checksums in them right again, so that half of the mutants come past those.
        hostile: made by hand: each spoils the valid folder.
        anywhere: whether its input is the user's own order, which may name any file to be read.
        share: of the inputs of the others, for slow ones.
        works_in: a folder it may read and write besides its input's.
    """

    name: str
    make: Work
    read: Work
    seal: Work | None = None
    hostile: Mapping[str, Work] = field(default_factory=dict)
    anywhere: bool = False
    share: float = 1.0
    works_in: tuple[Path, ...] = ()


def entry_of(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as manifests have them."""
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def resealed(manifest: Path, entries: Callable[[Any], Iterator[tuple[dict[str, Any], str]]]) -> None:
    """Put sizes and checksums of the files a manifest lists right; `entries` gives (entry, file) of each."""
    try:
        content = json.loads(manifest.read_bytes())
        for entry, file in entries(content):
            entry |= {key: value for key, value in entry_of(manifest.parent / file).items() if key in entry}
        write_sealed(manifest, content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # too spoilt to be sealed


def put(name: str, content: bytes | str) -> Work:
    """Spoils a folder: the file `name` holds `content`."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def changed(name: str, change: Callable[[Any], object]) -> Work:
    """Spoils a folder: what the JSON file `name` says is changed in place."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        change(content)
        if isinstance(content, dict) and SEAL in content:
            write_sealed(folder / name, content)
        else:
            (folder / name).write_text(json.dumps(content))

    return spoil


def under(folder: Path, *paths: Path) -> None:
    """See that `paths` are below `folder`, by their names.

    Raises:
        Outside: one is not.
    """
    for path in paths:
        if ".." in path.parts or not path.is_relative_to(folder):
            raise Outside(str(path))
