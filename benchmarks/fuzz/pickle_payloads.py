"""Pickles in the place of weights: some call, some never end, some unpack to gigabytes."""

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any


class Planted:
    """What unpickles into a command."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch ../outside/ran",)


def _zipped(content: bytes) -> bytes:
    """A file as torch.save makes it, around any pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
    return made.getvalue()


def _bomb() -> bytes:
    """A ZIP whose pickle unpacks to a gigabyte."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", "3\n")
        with archive.open("a/data.pkl", "w") as stream:
            for _ in range(700):
                stream.write(bytes(1 << 20))
    return made.getvalue()


PICKLE = pickle.dumps(Planted())
PICKLES: dict[str, Callable[[], bytes]] = {
    "a pickle that calls": lambda: PICKLE,
    "a ZIP with a pickle that calls": lambda: _zipped(PICKLE),
    "a pickle without end": lambda: b"\x80\x02" + b"]" * 1_000_000 + b".",
    "a ZIP of a pickle without end": lambda: _zipped(b"\x80\x02" + b"(" * 1_000_000 + b"."),
    "a ZIP with a bomb": _bomb,
    "a ZIP of a huge bytes object": lambda: _zipped(b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x."),
    "a ZIP of a global": lambda: _zipped(b"\x80\x02ctorch.hub\nload\n."),
    "a ZIP of nothing": lambda: _zipped(b""),
}
