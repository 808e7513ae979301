"""What a reader of hostile input must not touch, seen and stopped.

What Python tells of itself (`sys.addaudithook`): opening what is outside, changing what is outside, programs,
connections, pickles, code from the input. What libraries open in C or Rust is not seen. A link in the folder is its
owner's own arrangement: reading through it is allowed, writing is not.
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

STARTS = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
}
CONNECTS = {"socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}
FORBIDDEN = STARTS | CONNECTS | {"pickle.find_class", "ctypes.dlopen", "urllib.Request", "webbrowser.open"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"} | {
    *("os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree", "os.setxattr")
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LIBRARIES = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, *filter(None, sys.path)}
INSTALLED = (*map(os.path.realpath, _LIBRARIES), "/proc", "/sys", "/dev/null", "/dev/urandom", "/usr/share/zoneinfo")
"""May be read: what is installed belongs to no input."""


class Escaped(BaseException):
    """A reader touched what it must not; raised so that it does not come to pass."""


class Fence:
    """An audit hook: notes, and stops, what leads out of `folders` while `up`.

    Args:
        folders: may be read and written, with all that is in them.
        anywhere: whether the input is its reader's own order and may name any file to be read.
    """

    def __init__(self, *folders: Path, anywhere: bool = False) -> None:
        self.folders, self.anywhere = [os.path.realpath(folder) for folder in folders], anywhere
        self.up, self.crossings = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.up and (crossing := self._crossing(event, args)):
            self.crossings.append(crossing)
            raise Escaped(crossing)

    def _crossing(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._opening(*args)
        if event in FORBIDDEN:
            return f"{event} {str(args)[:200]}"
        if event in CHANGES:
            return next((f"{event} {one}" for one in _named(args) if not self._within(_itself(one))), None)
        if event == "exec" and self._within(getattr(args[0], "co_filename", "")):
            return f"exec {args[0].co_filename}"
        if event == "import" and str(args[0]).startswith("transformers_modules"):
            return f"import {args[0]}"
        return None

    def _opening(self, path: Any, _mode: Any, flags: Any) -> str | None:
        if not isinstance(path, str | bytes | os.PathLike):
            return None
        text = _text(path)
        if isinstance(flags, int) and flags & WRITING:
            real = os.path.realpath(text)
            return None if self._within(real) or real == "/dev/null" else f"written: {text}"
        plain = os.path.normpath(os.path.join(os.getcwd(), text))
        fine = self.anywhere or self._within(plain) or plain.startswith(INSTALLED)
        return None if fine else f"read: {text}"

    def _within(self, path: str) -> bool:
        return any(path == folder or path.startswith(folder + os.sep) for folder in self.folders)


def _named(args: tuple[Any, ...]) -> list[str]:
    """The paths among an event's arguments, made whole where they are below an open folder, whose number comes last."""
    folders = [f"/proc/self/fd/{one}" for one in args if isinstance(one, int) and one > 2]
    return [os.path.join(*folders[-1:], _text(one)) for one in args if isinstance(one, str | bytes | os.PathLike)]


def _itself(path: str) -> str:
    """Where `path` is, not where it leads."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _text(path: Any) -> str:
    return os.fsdecode(os.fspath(path))
