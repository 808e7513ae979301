"""An audit hook that detects and stops what a reader of hostile input must not do.

It sees what Python reports through `sys.addaudithook`: opening or changing files outside the input's folder, starting
programs, opening connections, unpickling, running code from the input. It does not see what libraries open in C or
Rust. Reading through a link in the folder is allowed, because the folder's owner made the link; writing is not.
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
FORBIDDEN = STARTS | CONNECTS | {"pickle.find_class", "urllib.Request", "webbrowser.open"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"} | {
    *("os.chown", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.copytree", "os.setxattr")
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LIBRARIES = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, *filter(None, sys.path)}
INSTALLED = (*map(os.path.realpath, _LIBRARIES), "/proc", "/sys", "/dev/null", "/dev/urandom", "/usr/share/zoneinfo")
"""Paths that may be read: installed files are not part of any input."""


class ForbiddenAccess(BaseException):
    """Raised in place of the forbidden action of a reader."""


class AuditHook:
    """Records and stops every action outside `folders` while `active`.

    Args:
        folders: folders that may be read and written.
        anywhere: whether the input comes from the user and may name any file to be read.
    """

    def __init__(self, *folders: Path, anywhere: bool = False) -> None:
        self.folders, self.anywhere = [os.path.realpath(folder) for folder in folders], anywhere
        self.active, self.violations = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.active and (violation := self._violation(event, args)):
            self.violations.append(violation)
            raise ForbiddenAccess(violation)

    def _violation(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            return self._opening(*args)
        if event == "ctypes.dlopen":  # quantised models load the library of an installed package
            library = os.path.realpath(_text(args[0])) if args[0] else INSTALLED[0]
            return None if library.startswith(INSTALLED) else f"{event} {library}"
        if event in FORBIDDEN:
            return f"{event} {str(args)[:200]}"
        if event in CHANGES:
            return next((f"{event} {path}" for path in _paths(args) if not self._within(_location(path))), None)
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
            # With O_NOFOLLOW, as locks are opened, the system refuses a link.
            real = _location(text) if flags & os.O_NOFOLLOW else os.path.realpath(text)
            return None if self._within(real) or real == "/dev/null" else f"written: {text}"
        plain = os.path.normpath(os.path.join(os.getcwd(), text))
        allowed = self.anywhere or self._within(plain) or plain.startswith(INSTALLED)
        return None if allowed else f"read: {text}"

    def _within(self, path: str) -> bool:
        return any(path == folder or path.startswith(folder + os.sep) for folder in self.folders)


def _paths(args: tuple[Any, ...]) -> list[str]:
    """Return the paths among an event's arguments; relative ones are joined to the open folder they refer to."""
    folders = [f"/proc/self/fd/{value}" for value in args if isinstance(value, int) and value > 2]
    return [os.path.join(*folders[-1:], _text(value)) for value in args if isinstance(value, str | bytes | os.PathLike)]


def _location(path: str) -> str:
    """Return where `path` itself is: a link is not followed."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)


def _text(path: Any) -> str:
    return os.fsdecode(os.fspath(path))
