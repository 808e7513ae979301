"""Names of concepts while they are being looked at: read once, read again when the files change, edited in place."""

import threading
from pathlib import Path

from cocomix.analysis.record import EDITED, FOUND, ConceptName, Names, edit_name, read_names, with_edits

_Stamp = tuple[int, int] | None


class NameBook:
    """Names kept in a run for one set of concepts; for use by several threads.

    Args:
        folder: of the run.
        key: checksum of the weights the concepts belong to.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._lock = threading.Lock()
        self._read: tuple[_Stamp, _Stamp, Names] | None = None

    def names(self) -> Names:
        """As they are on disk now: `cocomix name` may have been run meanwhile.

        Raises:
            CocomixError: a file is damaged.
        """
        with self._lock:
            return self._names()

    def edit(self, concept: int, name: str) -> ConceptName:
        """Call `concept` `name`; an empty one takes the edit back. Returns what is known of it then.

        Raises:
            CocomixError: a file is damaged.
        """
        with self._lock:
            edit_name(self.folder, self.key, concept, name)
            return self._names().of(concept)

    def _names(self) -> Names:
        found, edited = _stamp(self.folder / FOUND), _stamp(self.folder / EDITED)
        if self._read is None or self._read[0] != found:
            self._read = found, edited, read_names(self.folder, self.key)
        elif self._read[1] != edited:
            self._read = found, edited, with_edits(self.folder, self.key, self._read[2].found)
        return self._read[2]


def _stamp(path: Path) -> _Stamp:
    """Inode and time of change; files here are replaced, never written over."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
