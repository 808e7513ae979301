"""The corpus on disk: a folder of JSON-lines files a split, and a manifest with counts and checksums.

The first layout, one `train.jsonl` beside the manifest, is read as a split of one file.
"""

import hashlib
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cocomix.data.document import Document
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import parse_json, read_sealed, sha256
from cocomix.utils.integrity import is_inside

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
    """What is used of a manifest's entry.

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
                    f"line {number} of the corpus file {path} is no document ({error}); {_again(path)}"
                ) from error
            yield document


def _document(row: Any) -> Document:
    if not (isinstance(row["id"], str) and isinstance(row["text"], str) and isinstance(row["meta"], dict)):
        raise TypeError("a value is of another type")
    row["text"].encode()  # half a character cannot be tokenised
    return Document(row["id"], row["text"], row["meta"])


def _again(path: Path) -> str:
    return f"delete {path.parent.parent} and run `cocomix corpus` again"


def check_file(path: Path, checksum: str) -> None:
    """Compare a corpus file with its checksum.

    Raises:
        CocomixError: the file is missing or was altered.
    """
    mend = _again(path)
    try:
        same = sha256(path) == checksum
    except FileNotFoundError:
        raise CocomixError(f"the corpus file {path} is missing; {mend}") from None
    if not same:
        raise CocomixError(f"the corpus file {path} was altered; {mend}")
