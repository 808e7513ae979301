"""Stages: named units of work with a fingerprint, done once.

A stage's fingerprint hashes its kind, its own settings and the fingerprints of the stages it reads, so a changed
setting redoes exactly what depends on it. Work happens in a hidden folder beside the final one and is renamed
into place when complete: a finished stage is never half overwritten, and an interrupted one resumes from its own
partial folder (checkpoints included). A finished stage of other settings is set aside and comes back when its settings
do (`attempts`). A file lock, held from the start of work until all is in place, keeps two commands from working on the
same stage.

Publishing: everything is forced to the disk, then the record, which names every file, then the folder gets its final
name, and only then is deleted what resuming needed (`scratch`). Killed anywhere in between, the next start finds a
complete record and goes on from there.

`ExternalInput` is a stage of another run whose output this run uses in place of training its own.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cocomix.pipeline.attempts import (
    ATTEMPT,
    RECORD,
    Attempt,
    attempts,
    hash_of,
    kept_folders,
    partial_folder,
    put_in_place,
    read_record,
)
from cocomix.pipeline.attempts import only_one as _only_one
from cocomix.utils.advice import command_line, delete
from cocomix.utils.console import Stopwatch, is_main
from cocomix.utils.distributed import StopNow, StopRequest, anywhere, barrier, on_main
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError, Interrupted, reason
from cocomix.utils.files import (
    disk_failed,
    disk_full,
    make_folder,
    read_json,
    remove_temporaries,
    sha256,
    sync,
    sync_tree,
    write_json,
    write_sealed,
)
from cocomix.utils.integrity import LOCK, NOTE, FileEntry, check_files

SECONDS, CHECKPOINTS = "seconds.json", "checkpoints"
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
    saves_when_stopped: ClassVar[bool] = False
    """Whether SIGTERM ends it as a request to save: with a message and exit code 0, wherever it is."""

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

    def scratch(self) -> Sequence[str]:
        """Files and folders of the stage's folder that only resuming needs; deleted once the stage is in its place."""
        return (SECONDS, ATTEMPT, CHECKPOINTS)

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

    def upstream(self) -> list["Stage"]:
        """Every stage that this one reads, directly or through others, each once."""
        found = {stage.folder: stage for direct in self.inputs for stage in (direct, *direct.upstream())}
        return list(found.values())

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
            record = read_record(self.folder)
            current = self._is_current(record)
        except FileNotFoundError:
            return None
        except PermissionError:
            raise  # the record may be sound, so the user must not be told to delete it
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CocomixError(
                f"{self.folder / RECORD} cannot be read ({type(error).__name__}: {error}); {self.redo_hint}"
            ) from error
        return record if current and self._complete(self.folder) else None

    def _is_current(self, record: dict[str, Any]) -> bool:
        """Whether a record is of the present settings and the present inputs."""
        current = record["fingerprint"] == self.fingerprint and record["figures"] is not None
        return current and record.get("inputs_outcome", self._inputs_outcome()) == self._inputs_outcome()

    def _complete(self, folder: Path) -> bool:
        return all((folder / output).exists() for output in self.outputs())

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
        return hash_of(figures)

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
        """Do the stage unless it is already done, or was done with these settings before; returns its figures.

        Raises:
            Interrupted: a signal asked to stop; if it came while the stage was put in its place, it is finished.
        """
        if on_main(self._is_finished):
            return self.check()
        for stage in self.upstream() if is_main() else []:
            remove_temporaries(stage.folder)
        for stage in self.inputs:
            stage.check()
        partial = partial_folder(self.run_dir, self.name, self.fingerprint)
        try:
            with _only_one(partial, self.title):
                if not on_main(lambda: self._bring_back(partial)):
                    self._work(partial, progress)
        except Exception as error:
            if disk_full(error):
                raise CocomixError(
                    f"the disk under {self.run_dir} is full; free some space and rerun the same command,"
                    " finished stages are kept"
                ) from error
            if disk_failed(error):
                raise CocomixError(
                    f"the disk under {self.run_dir} failed to read or write ({reason(error)}); check it, then rerun the"
                    " same command, finished stages are kept"
                ) from error
            if isinstance(error, PermissionError):
                raise CocomixError(
                    f"{error.filename or self.run_dir} may not be read or written; fix its permissions"
                ) from error
            raise
        return self.figures

    def replaces(self) -> dict[str, Any] | None:
        """The record of the finished stage that doing this one would set aside, if it has other settings or inputs.

        One that only an earlier version made is not meant: doing it anew is what the new version is for.
        """
        try:
            if self.record() is not None or self.kept() is not None:
                return None
            record = read_record(self.folder)
            alike = record["settings"] == json.loads(json.dumps(self.settings()))
            alike = alike and record.get("inputs_outcome") == self._inputs_outcome()
            return None if alike or record["fingerprint"] == self.fingerprint else record
        except (OSError, ValueError, KeyError, TypeError, CocomixError):
            return None

    def kept(self) -> Path | None:
        """Where the stage lies finished with these settings and inputs, if not in its place."""
        unpublished = partial_folder(self.run_dir, self.name, self.fingerprint)
        for folder in (unpublished, *kept_folders(self.run_dir, self.name)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = read_record(folder)
                if record.get("stage") == self.name and self._is_current(record) and self._complete(folder):
                    return folder
        return None

    def unfinished(self) -> list[Attempt]:
        """Unfinished attempts at this stage with other settings."""
        found = [attempt for attempt in attempts(self.run_dir) if not attempt.finished and attempt.stage == self.name]
        own = partial_folder(self.run_dir, self.name, self.fingerprint)
        return [attempt for attempt in found if attempt.folder != own]

    def _is_finished(self) -> bool:
        """Whether there is a record; what a kill just after it was put in its place left there is removed."""
        if self.record() is None:
            return False
        if os.access(self.folder, os.W_OK):  # a finished run may also be one that nobody may write to
            self._remove_scratch()
            remove_temporaries(self.folder)
        return True

    def _bring_back(self, partial: Path) -> bool:
        """Put the stage in its place if it was finished before; whether it was."""
        folder = self.kept()
        if folder is not None:
            self._put_in_place(folder)
        return folder is not None

    def _work(self, partial: Path, progress: Any) -> None:
        on_main(lambda: self._begin(partial))
        watch = Stopwatch(partial / SECONDS, writes=is_main())
        inputs_outcome = self._inputs_outcome()

        def report(step: int, total: int | None, metrics: dict[str, Any] | None = None) -> None:
            watch.tick()
            progress(step, total, metrics)

        try:
            with StopNow() if self.saves_when_stopped else contextlib.nullcontext():
                figures = self.work(partial, report) if self.distributed or is_main() else {}
        except BaseException:
            watch.keep()
            raise
        barrier()
        with StopRequest() as stop:
            on_main(lambda: self._publish(partial, figures, watch.seconds, inputs_outcome))
        if anywhere(stop.received is not None):
            raise Interrupted(
                f"stopped; {self.title} is finished, rerun the same command for what comes after it",
                by_user=stop.received == "SIGINT",
            )

    def _begin(self, partial: Path) -> None:
        """Prepare the folder of an attempt, which may be resumed: its lock is held."""
        make_folder(partial)
        remove_temporaries(partial, exclusive=True)
        (partial / RECORD).unlink(missing_ok=True)  # of a publishing that was stopped, and whose files have changed
        about = {"stage": self.name, "fingerprint": self.fingerprint, "settings": self.settings()}
        write_json(partial / ATTEMPT, about)

    def _publish(self, partial: Path, figures: dict[str, Any], seconds: float, inputs_outcome: list[str]) -> None:
        remove_temporaries(partial, exclusive=True)
        scratch = frozenset(self.scratch())
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "settings": self.settings(),
            "inputs": {stage.name: stage.fingerprint for stage in self.inputs},
            "inputs_outcome": inputs_outcome,
            "seconds": seconds,
            "made": {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": git_commit(),
                "machine": machine(),
            },
            "figures": figures,
            "files": _checksums(partial, scratch),
        }
        sync_tree(partial, leave_out=scratch)
        write_sealed(partial / RECORD, record, durable=True)
        self._put_in_place(partial)

    def _put_in_place(self, folder: Path) -> None:
        put_in_place(self.run_dir, self.name, folder)
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        """Delete it from the finished stage, which is safe already; after a failure the next command tries again."""
        try:
            found = [path for name in self.scratch() if (path := self.folder / name).exists()]
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if found:
                sync(self.folder)
        except FileNotFoundError:
            return  # another command deletes it
        except OSError as error:
            warnings.warn(
                f"what {self.title} no longer needs could not be deleted ({error.strerror or error}); the next command"
                " tries again",
                stacklevel=2,
            )


def _checksums(folder: Path, scratch: frozenset[str]) -> list[FileEntry]:
    """Checksums of a stage's files, except those that a manifest beside or above them lists with its own checksums."""
    inside = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] not in scratch]
    paths = [path for path in inside if path.is_file() and path.name not in {RECORD, NOTE, LOCK}]
    listed = {path.parent for path in paths if path.name in MANIFESTS}
    unlisted = [path for path in paths if path.name in MANIFESTS or listed.isdisjoint(path.parents)]
    return [
        {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in unlisted
    ]


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
