"""A stopwatch that survives a kill."""

import math
import time
from pathlib import Path

from cocomix.utils.files import read_json, write_json


class Stopwatch:
    """Seconds of work so far, those of interrupted attempts included.

    Args:
        path: where the seconds are kept between attempts.
        writes: whether this process keeps them (one of a launch does).
        every_seconds: at most this much is lost to a kill.
    """

    def __init__(self, path: Path, *, writes: bool = True, every_seconds: float = 5.0) -> None:
        self._path, self._writes, self._every = path, writes, every_seconds
        self._before = self._read()
        self._begun = self._kept = time.perf_counter()

    @property
    def seconds(self) -> float:
        """All seconds so far."""
        return self._before + time.perf_counter() - self._begun

    def tick(self) -> None:
        """Keep the seconds if it is time to."""
        if time.perf_counter() - self._kept > self._every:
            self.keep()

    def keep(self) -> None:
        """Write the seconds down; a full disk is somebody else's error to report."""
        self._kept = time.perf_counter()
        if self._writes:
            try:
                write_json(self._path, {"seconds": self.seconds})
            except OSError:
                return

    def _read(self) -> float:
        try:
            seconds = float(read_json(self._path)["seconds"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return 0.0
        return seconds if 0 <= seconds < math.inf else 0.0
