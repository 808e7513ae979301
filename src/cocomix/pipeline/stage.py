"""Stages: named units of work with a fingerprint, done once.

A stage's fingerprint hashes its kind, its own settings and the fingerprints of the stages it reads, so a changed
setting redoes exactly what depends on it. Work happens in a hidden folder beside the final one and is renamed
into place when complete: a finished stage is never half overwritten, and an interrupted one resumes from its own
partial folder (checkpoints included). A file lock keeps two commands from working on the same stage.

`ExternalInput` is a stage of another run whose output this run uses in place of training its own.
"""

import hashlib
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from filelock import FileLock, Timeout

from cocomix.utils.advice import command_line, delete
from cocomix.utils.console import Stopwatch, is_main
from cocomix.utils.distributed import barrier
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import SEAL, disk_full, read_json, seal, sha256, write_sealed
from cocomix.utils.integrity import LOCK, NOTE, FileEntry, check_files

RECORD, SECONDS, CHECKPOINTS = "stage.json", "seconds.json", "checkpoints"
MANIFESTS = {"manifest.json", "corpus.json"}
"""Lists of files with their checksums, of tokens, labels and the corpus."""


class Stage(ABC):
    """One unit of a run.

    Attributes:
        run_dir: the run's folder.
        user_folder: what a user gives as --run.
        user_options: what else a user gives for these settings: --config and overrides.
        name: path of the stage below the run folder, e.g. `labels/exact-helpful`.
        command: what a user types to run it alone, for error messages.
        inputs: stages this one reads; they must be finished first.
    """

    version: ClassVar[int] = 1
    distributed: ClassVar[bool] = False
    """Whether every process of a torchrun launch takes part; otherwise the first one works and the rest wait."""

    def __init__(self, run_dir: Path, name: str, command: str, inputs: Sequence["Stage"] = ()) -> None:
        self.run_dir = run_dir
        self.user_folder = run_dir
        self.user_options: list[str] = []
        self.name = name
        self.command = command
        self.inputs = list(inputs)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything of the configuration that changes this stage's output, JSON-able."""

    @abstractmethod
    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        """Do the work inside `folder`; return the figures to keep (JSON-able)."""

    def outputs(self) -> Sequence[str]:
        """Files below the stage's folder; if one is missing, the stage is done again."""
        return ()

    @property
    def title(self) -> str:
        """Its name in messages and in the progress bar."""
        return self.name

    def verify(self) -> None:
        """Check the finished stage's files against their checksums, or that they can be read.

        Raises:
            CocomixError: a file is damaged; the message names it.
        """
        return  # a stage that keeps only figures has nothing but its record, which has a checksum of its own

    def describe(self, figures: dict[str, Any]) -> str:
        """The figures to print when the stage ends, in a few words."""
        return ""

    @property
    def folder(self) -> Path:
        """Folder of the finished stage."""
        return self.run_dir / self.name

    @property
    def redo_hint(self) -> str:
        """How to redo a damaged stage, as part of an error message."""
        return f"{delete(self.folder)} and run {self.command_line}"

    @property
    def command_line(self) -> str:
        """What a user pastes to run it alone, for error messages."""
        return command_line(self.command, self.user_folder, self.user_options)

    @property
    def fingerprint(self) -> str:
        """Hash of kind, settings and inputs, 64 hex digits."""
        payload = {
            "kind": type(self).__name__,
            "version": self.version,
            "settings": self.settings(),
            "inputs": [stage.fingerprint for stage in self.inputs],
        }
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()

    def record(self) -> dict[str, Any] | None:
        """The record, if the stage is finished, complete, and made with the present settings from the present inputs.

        Raises:
            CocomixError: the record is damaged.
        """
        try:
            record = read_json(self.folder / RECORD)
            _check_seal(record)
            current = record["fingerprint"] == self.fingerprint and record["figures"] is not None
            current = current and record.get("inputs_outcome", self._inputs_outcome()) == self._inputs_outcome()
        except FileNotFoundError:
            return None
        except PermissionError:
            raise  # the record may be sound, so the user must not be told to delete it
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CocomixError(
                f"{self.folder / RECORD} cannot be read ({type(error).__name__}: {error}); {self.redo_hint}"
            ) from error
        complete = all((self.folder / output).exists() for output in self.outputs())
        return record if current and complete else None

    def done(self) -> bool:
        """Whether there is a `record`; False while an input is missing whose figures its settings need."""
        try:
            return self.record() is not None
        except CocomixError:
            return False

    def _inputs_outcome(self) -> list[str]:
        return [stage.outcome() for stage in self.inputs]

    def outcome(self) -> str:
        """Hash of the stage's latest figures, whatever its settings were; empty if it was never finished.

        If a stage is redone with the same figures (tokens that were deleted), stages that depend on it stay valid;
        if it trains again, they do not.
        """
        try:
            figures = read_json(self.folder / RECORD)["figures"]
        except PermissionError:
            raise
        except (OSError, ValueError, TypeError, KeyError):
            return ""
        return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()

    @property
    def figures(self) -> dict[str, Any]:
        """Figures of the finished stage.

        Raises:
            CocomixError: it is not finished with the present settings.
        """
        record = self.record()
        if record is None:
            raise CocomixError(
                f"{self.title} of {self.run_dir} is not done yet, or was made with other settings;"
                f" run {self.command_line} first"
            )
        return record["figures"]

    def check(self) -> dict[str, Any]:
        """Figures of the finished stage, after comparing its files with the checksums in its record.

        Files that a manifest in the stage lists are checked when they are opened; a record of an earlier version lists
        none.

        Raises:
            CocomixError: it is not finished, or a file is missing or altered.
        """
        figures = self.figures
        record = self.record() or {}
        check_files(self.folder, record.get("files", []), what="file", hint=f"restore it, or {self.redo_hint}")
        return figures

    def run(self, progress: Any) -> dict[str, Any]:
        """Do the stage unless it is already done; returns its figures."""
        if self.record() is not None:
            return self.check()
        for stage in self.inputs:
            stage.check()
        partial = self.run_dir / ".partial" / f"{self.name.replace('/', '--')}-{self.fingerprint[:12]}"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            watch = Stopwatch(partial / SECONDS, writes=is_main())

            def report(step: int, total: int | None, metrics: dict[str, Any] | None = None) -> None:
                watch.tick()
                progress(step, total, metrics)

            try:
                with _only_one(partial, self.title):
                    figures = self.work(partial, report) if self.distributed or is_main() else {}
            except BaseException:
                watch.keep()
                raise
            barrier()
            if is_main():
                self._publish(partial, figures, watch.seconds)
            barrier()
        except Exception as error:
            if disk_full(error):
                raise CocomixError(
                    f"the disk under {self.run_dir} is full; free some space and rerun the same command,"
                    " finished stages are kept"
                ) from error
            if isinstance(error, PermissionError):
                raise CocomixError(
                    f"{error.filename or self.run_dir} may not be read or written; fix its permissions"
                ) from error
            raise
        return self.figures

    def _publish(self, partial: Path, figures: dict[str, Any], seconds: float) -> None:
        (partial / SECONDS).unlink(missing_ok=True)
        shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "settings": self.settings(),
            "inputs": {stage.name: stage.fingerprint for stage in self.inputs},
            "inputs_outcome": self._inputs_outcome(),
            "seconds": seconds,
            "made": {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": git_commit(),
                "machine": machine(),
            },
            "figures": figures,
            "files": _checksums(partial),
        }
        write_sealed(partial / RECORD, record)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        outdated = partial.with_name(partial.name + ".old")
        shutil.rmtree(outdated, ignore_errors=True)
        if self.folder.exists():
            os.replace(self.folder, outdated)
        os.replace(partial, self.folder)
        stem = re.escape(partial.name.rsplit("-", 1)[0])
        for stale in partial.parent.iterdir():
            if re.fullmatch(rf"{stem}-[0-9a-f]{{12}}(\.old)?", stale.name):
                shutil.rmtree(stale, ignore_errors=True)
            elif re.fullmatch(rf"{stem}-[0-9a-f]{{12}}\.lock", stale.name):
                stale.unlink(missing_ok=True)


def _check_seal(record: dict[str, Any]) -> None:
    """Refuse a record that was altered; one of an earlier version has no seal."""
    if ("files" in record or SEAL in record) and record.get(SEAL) != seal(record):
        raise ValueError("it was altered")


def _checksums(folder: Path) -> list[FileEntry]:
    """Checksums of a stage's files, except those that a manifest beside or above them lists with its own checksums."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {RECORD, NOTE, LOCK}]
    listed = {path.parent for path in paths if path.name in MANIFESTS}
    unlisted = [path for path in paths if path.name in MANIFESTS or listed.isdisjoint(path.parents)]
    return [
        {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in unlisted
    ]


@contextmanager
def _only_one(partial: Path, title: str) -> Iterator[None]:
    """Hold the stage's lock, so that no other command works on it; it is released when the process ends in any way."""
    if not is_main():
        yield
        return
    lock = FileLock(partial.with_name(partial.name + ".lock"), blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise CocomixError(f"another command is working on {title} right now; wait until it is done") from None
    try:
        yield
    finally:
        lock.release()


class ExternalInput(NamedTuple):
    """A stage of another run, used in place of one of this run's own."""

    name: str
    """its name in the experiment's settings, e.g. `$sotu/teacher/model`; the same wherever the runs are stored"""
    stage: Stage
    """must be finished first; when it is redone, stages that read it are redone, too"""


ExternalInputs = Mapping[str, ExternalInput]
"""By the path in this run's settings."""


def external_stages(external_inputs: ExternalInputs, source: str | None) -> list[Stage]:
    """The stage behind the path `source`, to be added to a stage's inputs; empty if it is not an external input."""
    external = external_inputs.get(source or "")
    return [] if external is None else [external.stage]


def stable_name(external_inputs: ExternalInputs, source: str | None) -> str | None:
    """`source`, or for an external input its name, which does not depend on where runs are stored."""
    external = external_inputs.get(source or "")
    return source if external is None else external.name
