"""Experiment trackers: TensorBoard by torch's `SummaryWriter`, Weights & Biases and trackio by their own packages.

Choices:
- Only the first process logs, so a tracker never waits for another process.
- A tracker that fails during training is dropped with one warning: a curve is worth less than the run.
- A resumed run continues in its own folder (and its own W&B run); TensorBoard hides the steps logged after the
  checkpoint it resumed from.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from cocomix.utils.console import is_main
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.registry import Registry

PROJECT = "cocomix"


class Tracker(ABC):
    """Base class of experiment trackers.

    Args:
        folder: of the run's logs; it exists. The same folder again continues the same run.
        run_name: what trackers with a server call the run.
        config: settings to show beside the curves, one level deep.
    """

    name: ClassVar[str]
    """name in settings"""
    package: ClassVar[str]
    """the module it needs"""
    install: ClassVar[str]
    """what to `pip install` for it"""
    start_hint: ClassVar[str] = "fix that or leave it out"
    """what the user should do if it does not start"""

    @abstractmethod
    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log figures by name at an optimiser step."""

    @abstractmethod
    def close(self) -> None:
        """Flush and end."""


class TensorBoardTracker(Tracker):
    """TensorBoard event files, opened at the first step, from which on the events of an earlier process are invalid."""

    name, package, install = "tensorboard", "tensorboard", "'cocomix[track]'"

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open, self._folder, self._config = SummaryWriter, folder, config
        self._writer: SummaryWriter | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            is_new = not any(self._folder.glob("events.out.tfevents.*"))
            self._writer = self._open(str(self._folder), purge_step=step)
            if is_new:
                lines = "\n".join(f"    {name}: {value}" for name, value in self._config.items())
                self._writer.add_text("config", lines, step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbTracker(Tracker):
    """Weights & Biases, one W&B run for each folder."""

    name, package, install = "wandb", "wandb", "wandb"
    start_hint = "log in with `wandb login`, or set WANDB_MODE=offline"

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        self._run = import_module(self.package).init(
            project=PROJECT, config=dict(config), resume="allow", **self._identity(folder, run_name)
        )

    def _identity(self, folder: Path, run_name: str) -> dict[str, Any]:
        return {"name": run_name, "dir": str(folder), "id": _run_id(folder)}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioTracker(WandbTracker):
    """trackio, which has W&B's functions and identifies a run by its name."""

    name, package, install = "trackio", "trackio", "trackio"
    start_hint = Tracker.start_hint

    def _identity(self, folder: Path, run_name: str) -> dict[str, Any]:
        return {"name": f"{run_name}-{_run_id(folder)}"}


TRACKERS: Registry[type[Tracker]] = Registry("tracker", [TensorBoardTracker, WandbTracker, TrackioTracker])


class Trackers:
    """Logs to several trackers, and drops one that fails; without trackers it does nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log figures by name at an optimiser step."""
        numbers = {name: float(value) for name, value in metrics.items()}
        for tracker in list(self._trackers):
            try:
                tracker.log(numbers, step)
            except Exception as error:  # a failing tracker must not stop training
                self._drop(tracker, error)

    def close(self) -> None:
        """Flush and end; logging afterwards does nothing."""
        for tracker in list(self._trackers):
            try:
                tracker.close()
            except Exception as error:
                self._drop(tracker, error)
        self._trackers = []

    def _drop(self, tracker: Tracker, error: Exception) -> None:
        self._trackers.remove(tracker)
        message = f"the tracker {tracker.name} failed and is left out from here on ({_with_type(error)})"
        warnings.warn(message, stacklevel=4)


def open_trackers(names: Sequence[str], folder: Path, run_name: str, config: Mapping[str, Any]) -> Trackers:
    """Open trackers by name; none in processes other than the first.

    Args:
        names: in `TRACKERS`.
        folder: of the run's logs; created if needed. The same folder again continues the same run.
        run_name: what trackers with a server call the run.
        config: the settings to show beside the curves, nested as they may be.

    Raises:
        CocomixError: an unknown name, a missing package, or a tracker that does not start.
    """
    classes = [TRACKERS.choose(name) for name in dict.fromkeys(names)]
    for cls in classes:
        try:
            import_module(cls.package)
        except ImportError:
            raise CocomixError(
                f"the tracker {cls.name} needs a package that is missing: pip install {cls.install}"
            ) from None
    if not classes or not is_main():
        return Trackers()
    folder.mkdir(parents=True, exist_ok=True)
    return Trackers([_started(cls, folder, run_name, _flat(config)) for cls in classes])


def _started(cls: type[Tracker], folder: Path, run_name: str, config: dict[str, Any]) -> Tracker:
    try:
        return cls(folder, run_name, config)
    except Exception as error:
        raise CocomixError(f"the tracker {cls.name} does not start ({_with_type(error)}); {cls.start_hint}") from error


def _run_id(folder: Path) -> str:
    """An identifier of this run that outlives the process, kept in its folder."""
    path = folder / "tracker-id.txt"
    if not path.exists():
        path.write_text(os.urandom(6).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _with_type(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}" if str(error) else type(error).__name__


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b: value`, values plain."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
