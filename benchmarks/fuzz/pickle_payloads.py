"""Pickles in place of weights: some call a function, some never end, some unpack to gigabytes."""

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any


class CommandOnLoad:
    """Runs a shell command when unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch ../outside/ran",)


def _zipped(content: bytes) -> bytes:
    """Return a file as `torch.save` writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/byteorder", "little")
        archive.writestr("a/version", "3\n")
    return buffer.getvalue()


def _bomb() -> bytes:
    """Return a ZIP whose pickle unpacks to 700 MiB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/version", "3\n")
        with archive.open("a/data.pkl", "w") as stream:
            for _ in range(700):
                stream.write(bytes(1 << 20))
    return buffer.getvalue()


PICKLE = pickle.dumps(CommandOnLoad())
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
