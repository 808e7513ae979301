"""Experiment trackers by name, through `accelerate.tracking`: TensorBoard, Weights & Biases, trackio and its others.

Choices worth knowing: only the first process logs, so a tracker never waits for another one; a tracker that fails
while training runs is dropped with one warning, since a curve is worth less than the run; a resumed run goes on in
its own folder (and its own W&B run), and TensorBoard hides the steps logged after the checkpoint it resumed from.

Accelerate's `PartialState` is made here because its log calls ask for it. It would set torch's threads and environment
variables on CPU, and join a process group on GPUs; all of that is put back or kept from it.
"""

import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cocomix.utils.console import is_main
from cocomix.utils.errors import CocomixError

PROJECT = "cocomix"
PACKAGES = {"comet_ml": "comet-ml"}
"""What to install where a tracker's package is not called as the tracker is."""


class Tracker:
    """Somewhere to log to; this one logs nowhere."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log figures by name at an optimiser step."""

    def close(self) -> None:
        """Flush and end; logging afterwards does nothing."""


def open_tracker(names: Sequence[str], folder: Path, run_name: str, config: dict[str, Any]) -> Tracker:
    """A tracker that logs to every one of `names`; none, or another process than the first: nowhere.

    Args:
        names: as Accelerate calls them, e.g. tensorboard, wandb, trackio.
        folder: of the run's logs; made if need be. The same folder again goes on with the same run.
        run_name: what trackers with a server call the run.
        config: the settings to show beside the curves, nested as they may be.

    Raises:
        CocomixError: unknown name, a missing package, or a tracker that does not start.
    """
    if not names:
        return Tracker()
    if importlib.util.find_spec("accelerate") is None:
        raise CocomixError("trackers need accelerate: pip install 'cocomix[track]'")
    classes = _classes(names)
    if not is_main():
        return Tracker()
    folder.mkdir(parents=True, exist_ok=True)
    _accelerate_state()
    return _Several([BACKENDS.get(str(kind.name), _Backend)(kind, folder, run_name, config) for kind in classes])


def _classes(names: Sequence[str]) -> list[Any]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    unknown = [name for name in names if name not in LOGGER_TYPE_TO_CLASS]
    if unknown:
        raise CocomixError(
            f"there is no tracker {unknown[0]!r}; choose among {', '.join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))}"
        )
    here = {str(one) for one in get_available_trackers()}
    for name in names:
        if name not in here:
            mend = "'cocomix[track]'" if name == "tensorboard" else PACKAGES.get(name, name)
            raise CocomixError(f"the tracker {name} needs a package that is missing: pip install {mend}")
    return [LOGGER_TYPE_TO_CLASS[name] for name in dict.fromkeys(names)]


class _Several(Tracker):
    """Logs to each of several trackers that still works."""

    def __init__(self, backends: "list[_Backend]") -> None:
        self._backends = backends

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._each("log", {name: float(value) for name, value in metrics.items()}, step)

    def close(self) -> None:
        self._each("close")
        self._backends = []

    def _each(self, method: str, *arguments: Any) -> None:
        for backend in list(self._backends):
            try:
                getattr(backend, method)(*arguments)
            except Exception as error:  # a tracker's own failures, whatever they are, are no reason to stop training
                self._backends.remove(backend)
                warnings.warn(
                    f"the tracker {backend.name} failed and is left out from here on ({_first(error)})", stacklevel=4
                )


class _Backend:
    """One of Accelerate's trackers, started at once."""

    def __init__(self, kind: Any, folder: Path, run_name: str, config: dict[str, Any]) -> None:
        self.name = str(kind.name)
        self._folder, self._config = folder, _flat(config)
        arguments, named = self._arguments(folder, run_name, kind.requires_logging_directory)
        try:
            self._tracker = kind(*arguments, **named)
            self._begin()
        except Exception as error:
            raise CocomixError(f"the tracker {self.name} does not start ({_first(error)}); {self._mend()}") from error

    def _arguments(self, folder: Path, run_name: str, wants_folder: bool) -> tuple[list[Any], dict[str, Any]]:
        """What Accelerate's class is called with."""
        return [run_name, *([folder] if wants_folder else [])], {}

    def _begin(self) -> None:
        self._tracker.start()
        self._tracker.store_init_configuration(self._config)

    def _mend(self) -> str:
        return "mend that or leave it out"

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._tracker.log(metrics, step=step)

    def close(self) -> None:
        self._tracker.finish()


class _TensorBoard(_Backend):
    """Starts with the first step, for it must be told from which one on an earlier process's log is void.

    The settings are logged as text: what Accelerate does makes two more runs of each.
    """

    _started = False

    def _arguments(self, folder: Path, run_name: str, wants_folder: bool) -> tuple[list[Any], dict[str, Any]]:
        return [folder.name, folder.parent], {}

    def _begin(self) -> None:
        pass

    def log(self, metrics: dict[str, float], step: int) -> None:
        if not self._started:
            new = not any(self._folder.glob("events.out.tfevents.*"))
            self._tracker.init_kwargs["purge_step"] = step
            self._tracker.start()
            self._started = True
            if new:
                lines = "\n".join(f"    {name}: {value}" for name, value in self._config.items())
                self._tracker.log({"config": lines}, step=step)
        super().log(metrics, step)

    def close(self) -> None:
        if self._started:
            super().close()


class _Wandb(_Backend):
    def _arguments(self, folder: Path, run_name: str, wants_folder: bool) -> tuple[list[Any], dict[str, Any]]:
        return [PROJECT], {"name": run_name, "dir": str(folder), "id": _identity(folder), "resume": "allow"}

    def _mend(self) -> str:
        return "log in with `wandb login`, or set WANDB_MODE=offline"


class _Trackio(_Backend):
    def _arguments(self, folder: Path, run_name: str, wants_folder: bool) -> tuple[list[Any], dict[str, Any]]:
        return [PROJECT], {"name": f"{run_name}-{_identity(folder)}", "resume": "allow"}


BACKENDS: dict[str, type[_Backend]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
"""Trackers that need more than a name; every other of Accelerate's is a `_Backend`."""


def _identity(folder: Path) -> str:
    """A name of this run that outlives the process, kept in its folder."""
    path = folder / "tracker-id.txt"
    if not path.exists():
        path.write_text(os.urandom(6).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `a.b: value`, values plain."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _accelerate_state() -> None:
    """Make Accelerate's process state, if nobody has, and leave threads and environment as they were."""
    from accelerate.state import PartialState

    before, threads = dict(os.environ), torch.get_num_threads()
    if not dist.is_initialized():
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)  # it would join a process group for a launch of one process
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
        os.environ.setdefault(name, "1")  # else it refuses some consumer GPUs; the group exists, so nothing reads them
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PartialState()
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        torch.set_num_threads(threads)
