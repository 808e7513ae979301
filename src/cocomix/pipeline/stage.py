"""Stages: named units of work with a fingerprint, done once.

A stage's fingerprint hashes its kind, its own settings and the fingerprints of the stages it reads, so a changed
setting redoes exactly what depends on it. Work happens in a hidden folder beside the final one and is renamed
into place when complete: a finished stage is never half overwritten, and an interrupted one finds its own
partial folder (checkpoints included) again.
"""

import fcntl
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

from cocomix.utils.clock import Stopwatch
from cocomix.utils.console import is_main
from cocomix.utils.distributed import barrier
from cocomix.utils.env import git_commit, machine
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import SEAL, disk_full, read_json, seal, sha256, write_sealed
from cocomix.utils.integrity import NOTE, FileEntry, check_files

RECORD, SECONDS, CHECKPOINTS = "stage.json", "seconds.json", "checkpoints"
MANIFESTS = {"manifest.json", "corpus.json"}
"""Lists of files with their checksums, of tokens, labels and the corpus."""


class Stage(ABC):
    """One unit of a run.

    Attributes:
        name: path of the stage below the run folder, e.g. `labels/exact-helpful`.
        inputs: stages this one reads; they must be finished first.
        command: what a user types to run it alone, for error messages.
    """

    version: ClassVar[int] = 1
    distributed: ClassVar[bool] = False
    """Whether every process of a torchrun launch takes part; otherwise the first one works and the rest wait."""

    def __init__(self, run_dir: Path, name: str, command: str, inputs: Sequence["Stage"] = ()) -> None:
        self.run_dir = run_dir
        self.user_folder = run_dir
        """what a user gives as --run"""
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
        """Files below the stage's folder without which it must be done again."""
        return ()

    @property
    def title(self) -> str:
        """What the progress bar calls it."""
        return self.name

    def verify(self) -> None:
        """Compare the finished stage's files with the checksums there are of them, or see that they can be read.

        Raises:
            CocomixError: a damaged one, by name.
        """
        return  # a stage that keeps figures only has its record alone, which is read whole or not at all

    def describe(self, figures: dict[str, Any]) -> str:
        """The figures a user wants to see when the stage ends, in a few words."""
        return ""

    @property
    def folder(self) -> Path:
        """Where the finished stage lies."""
        return self.run_dir / self.name

    @property
    def again(self) -> str:
        """What a user does to make a damaged stage anew."""
        return f"delete {self.folder} and run `{self.command} --run {self.user_folder}`"

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
        """The record, if the stage is finished, whole, and made with the present settings from the present inputs."""
        try:
            record = read_json(self.folder / RECORD)
            _check_seal(record)
            mine = record["fingerprint"] == self.fingerprint and record["figures"] is not None
            mine = mine and record.get("inputs_outcome", self._inputs_outcome()) == self._inputs_outcome()
        except FileNotFoundError:
            return None
        except PermissionError:
            raise  # the record may be sound, so nobody is told to delete it
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CocomixError(
                f"{self.folder / RECORD} cannot be read ({type(error).__name__}: {error}); {self.again}"
            ) from error
        whole = all((self.folder / output).exists() for output in self.outputs())
        return record if mine and whole else None

    def done(self) -> bool:
        """Whether there is a `record`; not while an input whose figures its settings need is missing."""
        try:
            return self.record() is not None
        except CocomixError:
            return False

    def _inputs_outcome(self) -> list[str]:
        return [stage.outcome() for stage in self.inputs]

    def outcome(self) -> str:
        """Hash of what the stage found last, with whatever settings; empty if it was never finished.

        A stage that is done again and finds the same (tokens that were deleted) leaves what depends on it in place;
        one that trains again does not.
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
                f" run `{self.command} --run {self.user_folder}` first"
            )
        return record["figures"]

    def check(self) -> dict[str, Any]:
        """Figures of the finished stage, once its files are found to be those it left.

        Files that a manifest in the stage lists are left to who opens them; a record of an earlier version lists none.

        Raises:
            CocomixError: it is not finished, or a file is missing or altered.
        """
        figures = self.figures
        record = self.record() or {}
        check_files(self.folder, record.get("files", []), what="file", mend=f"restore it, or {self.again}")
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

            def ticking(step: int, total: int | None, metrics: dict[str, Any] | None = None) -> None:
                watch.tick()
                progress(step, total, metrics)

            try:
                with _only_one(partial, self.title):
                    figures = self.work(partial, ticking) if self.distributed or is_main() else {}
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
                    f"the disk under {self.run_dir} is full; free some space and run the same command again,"
                    " finished stages are kept"
                ) from error
            if isinstance(error, PermissionError):
                raise CocomixError(
                    f"{error.filename or self.run_dir} may not be read or written; mend its permissions"
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
            "files": _left(partial),
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
    """Notice a record in which a digit is another; one of an earlier version has no seal."""
    if ("files" in record or SEAL in record) and record.get(SEAL) != seal(record):
        raise ValueError("it was altered")


def _left(folder: Path) -> list[FileEntry]:
    """The files of a stage, apart from those that a manifest beside or above them lists with checksums of its own."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {RECORD, NOTE}]
    listed = {path.parent for path in paths if path.name in MANIFESTS}
    mine = [path for path in paths if path.name in MANIFESTS or listed.isdisjoint(path.parents)]
    return [
        {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in mine
    ]


class ModelStage(Stage):
    """A stage that leaves a model in its folder `model`."""

    def checksum(self) -> str:
        """sha256 over the weight files."""
        return sha256(*sorted((self.folder / "model").glob("*.safetensors")))


@contextmanager
def _only_one(partial: Path, title: str) -> Iterator[None]:
    """Within: no other command works on this stage; the lock ends with the process, however that ends."""
    if not is_main():
        yield
        return
    with partial.with_name(partial.name + ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CocomixError(f"another command is working on {title} right now; wait until it is done") from None
        yield


# What one run uses of another: a stage elsewhere whose output stands in for training one's own.


class Lent(NamedTuple):
    """A stage of another run."""

    name: str
    """how the configuration calls it, e.g. `$sotu/teacher/model`; wherever the runs lie, it is the same"""
    stage: Stage
    """what must be finished first, and makes the borrower outdated when it is made again"""


Lending = Mapping[str, Lent]
"""By the path the borrower's configuration has."""


def borrowed(lending: Lending, source: str | None) -> list[Stage]:
    """The stage behind `source`, as further inputs of a stage; none where it is nobody else's."""
    lent = lending.get(source or "")
    return [] if lent is None else [lent.stage]


def known_as(lending: Lending, source: str | None) -> str | None:
    """`source` by the name that does not depend on where runs lie."""
    lent = lending.get(source or "")
    return source if lent is None else lent.name
