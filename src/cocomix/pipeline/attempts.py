"""Attempts at a stage: one for each combination of settings and inputs that was tried, and none deletes another.

    RUN/NAME                         the finished stage that later stages read
    RUN/.kept/NAME--SETTINGS-INPUTS  finished with other settings, or from other inputs; back in place when they return
    RUN/.partial/NAME-SETTINGS       unfinished, with its checkpoints; goes on when its settings return
    RUN/.locks/NAME-SETTINGS.lock    held while that attempt is worked on and published
    RUN/.locks/NAME.lock             held while the finished stage is exchanged

NAME has `--` for `/`; SETTINGS and INPUTS are the beginnings of hashes. Folders are moved by a rename and deleted by
`clean` alone, which a user asks for. Lock files are never deleted: a process may be waiting for one.
"""

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cocomix.utils.distributed import on_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import SEAL, folder_bytes, move, read_json, seal

RECORD, ATTEMPT = "stage.json", "attempt.json"
KEPT, PARTIAL, LOCKS = ".kept", ".partial", ".locks"
REPLACED, DELETED = ".old", ".deleted"
"""Endings of folders that wait for their deletion: replaced by their own remake, and no longer wanted by the user."""
EXCHANGE_SECONDS = 60.0
"""Another process exchanges a finished stage in far less."""


def flat_name(name: str) -> str:
    """A stage's name as part of a folder's name."""
    return name.replace("/", "--")


def hash_of(value: Any) -> str:
    """Hash of a JSON-able value, 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def partial_folder(run_dir: Path, name: str, fingerprint: str) -> Path:
    """Where the unfinished attempt with these settings lies."""
    return run_dir / PARTIAL / f"{flat_name(name)}-{fingerprint[:12]}"


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished stage.

    Raises:
        OSError: there is none, or it cannot be read. ValueError: it was altered, or is no record.
    """
    record = read_json(folder / RECORD)
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if ("files" in record or SEAL in record) and record.get(SEAL) != seal(record):  # earlier versions wrote no seal
        raise ValueError("it was altered")
    return record


@contextmanager
def only_one(partial: Path, title: str) -> Iterator[None]:
    """Hold an attempt's lock, in a launch by the main process for all; it is released when the process ends anyhow.

    Raises:
        CocomixError: another command has it.
    """
    path = partial.parent.parent / LOCKS / f"{partial.name}.lock"
    with ExitStack() as stack:

        def take() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(path, blocking=False, fallback_to_soft=False))
            except Timeout:
                raise CocomixError(f"another command is working on {title} right now; wait until it is done") from None

        on_main(take)
        yield


def in_use(partial: Path) -> bool:
    """Whether a process works on an attempt right now."""
    path = partial.parent.parent / LOCKS / f"{partial.name}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, blocking=False, fallback_to_soft=False):
            return False
    except (Timeout, OSError):
        return True


@contextmanager
def exchanging(run_dir: Path, name: str) -> Iterator[None]:
    """Hold the lock of a finished stage's place, for as long as two renames take."""
    path = run_dir / LOCKS / f"{flat_name(name)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=EXCHANGE_SECONDS, fallback_to_soft=False):
            yield
    except Timeout:
        raise CocomixError(
            f"another command has been putting {name} in place for {EXCHANGE_SECONDS:.0f} s; end it, then rerun"
        ) from None


def put_in_place(run_dir: Path, name: str, source: Path) -> None:
    """Make the finished attempt `source` the stage `name`, and keep the one that is in its place, if any.

    One with the same settings and inputs has lost a file, else it would not have been made again: it is deleted.
    Killed between the two renames, the stage is missing and `source` is complete: the next start moves it.
    """
    folder, replaced = run_dir / name, run_dir / PARTIAL / f"{flat_name(name)}{REPLACED}"
    with exchanging(run_dir, name):
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            key = _key(folder)
            move(folder, replaced if key == _key(source) else _kept_folder(run_dir, name, key))
        move(source, folder)
        shutil.rmtree(replaced, ignore_errors=True)


def _key(folder: Path) -> str:
    """What tells a finished attempt from others at its stage: settings and inputs."""
    try:
        record = read_record(folder)
        return f"{record['fingerprint'][:12]}-{hash_of(record.get('inputs_outcome', []))[:8]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _kept_folder(run_dir: Path, name: str, key: str) -> Path:
    stem = run_dir / KEPT / f"{flat_name(name)}--{key}"
    numbered = (stem if number == 1 else stem.with_name(f"{stem.name}-{number}") for number in count(1))
    return next(path for path in numbered if not path.exists())


def kept_folders(run_dir: Path, name: str) -> list[Path]:
    """Finished attempts at the stage `name` that are kept, newest first."""
    found: list[tuple[float, Path]] = []
    for path in (run_dir / KEPT).glob(f"{flat_name(name)}--*"):
        with contextlib.suppress(OSError):  # another command has just brought it back
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


# --- listing and deleting, for `cocomix clean` ---


@dataclass(frozen=True)
class Attempt:
    """An attempt that is not the finished stage in its place.

    Attributes:
        folder: where it lies.
        stage: the stage's name; of a folder without a readable record, as far as its own name says.
        finished: whether it is complete.
        fingerprint: of its settings; empty if not known.
        settings: None if not known.
        seconds: of work that went into it, if known.
        changed: when it last changed, seconds since 1970.
        bytes: what it takes on the disk.
    """

    folder: Path
    stage: str
    finished: bool
    fingerprint: str
    settings: dict[str, Any] | None
    seconds: float | None
    changed: float
    bytes: int

    @property
    def age_days(self) -> float:
        """Days since it last changed."""
        return max(0.0, time.time() - self.changed) / 86400


def attempts(run_dir: Path) -> list[Attempt]:
    """All attempts in a run's folder beside its finished stages, by name."""
    found = []
    for parent, finished in ((run_dir / KEPT, True), (run_dir / PARTIAL, False)):
        for folder in _folders(parent):
            with contextlib.suppress(FileNotFoundError):  # another command has just put it in its place
                found.append(_attempt(folder, finished=finished))
    return found


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and path.name[0] != ".") if parent.is_dir() else []


def _attempt(folder: Path, *, finished: bool) -> Attempt:
    about: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        content = read_record(folder) if finished else read_json(folder / ATTEMPT)
        about = content if isinstance(content, dict) else {}
    seconds, changed = about.get("seconds"), folder.stat().st_mtime
    if not finished:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            seconds = float(read_json(folder / "seconds.json")["seconds"])
        changed = max([changed, *(path.stat().st_mtime for path in folder.glob("*"))])
    else:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            changed = datetime.fromisoformat(about["made"]["at"]).timestamp()
    stem = re.sub(r"-{1,2}([0-9a-f]{12}(-[0-9a-f]{8})?|unknown)(-\d+)?$|\.old$", "", folder.name)
    return Attempt(
        folder=folder,
        stage=about.get("stage") or stem.replace("--", "/"),
        finished=finished,
        fingerprint=about.get("fingerprint") or "",
        settings=about.get("settings"),
        seconds=seconds,
        changed=changed,
        bytes=folder_bytes(folder),
    )


def delete(found: Sequence[Attempt]) -> list[Attempt]:
    """Delete attempts, except those a process works on; returns the deleted ones."""
    deleted = []
    for parent in {attempt.folder.parent for attempt in found}:
        for doomed in parent.glob(f".*{DELETED}"):
            shutil.rmtree(doomed, ignore_errors=True)
    for attempt in found:
        with contextlib.ExitStack() as stack:
            try:
                if not attempt.finished:
                    stack.enter_context(only_one(attempt.folder, attempt.stage))
            except CocomixError:
                continue
            # Under another name first: killed half-way, it must not look like an attempt that can go on.
            doomed = attempt.folder.with_name(f".{attempt.folder.name}{DELETED}")
            shutil.rmtree(doomed, ignore_errors=True)
            attempt.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            deleted.append(attempt)
    return deleted
