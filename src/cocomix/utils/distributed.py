"""The parts of torch.distributed that cocomix uses: rank, barriers, gathering, start and end, and stop signals.

A process started by torchrun finds RANK and WORLD_SIZE in its environment; without them everything here is a
no-op, so the same code runs on a laptop.
"""

import os
import pickle
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from cocomix.utils.console import is_main, rank, world_size
from cocomix.utils.errors import CocomixError, Interrupted

__all__ = [
    "DEVICE",
    "DEVICES",
    "Interrupted",
    "StopNow",
    "StopRequest",
    "anywhere",
    "barrier",
    "device",
    "distributed_session",
    "gathered",
    "is_main",
    "mean_over_processes",
    "on_main",
    "rank",
    "sum_over_processes",
    "world_size",
]

_session: dict[str, Any] = {}
"""The store of the launch, while there is one."""
LONGEST_WAIT = timedelta(hours=6)
"""Some stages are one process's work (tokenizing, evaluating) while the others wait at a barrier."""


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


DEVICE = "COCOMIX_DEVICE"
"""Environment variable that chooses the device: one of `DEVICES`. No setting of a run, which may go on elsewhere."""
DEVICES = ("auto", "cpu", "cuda", "mps")


def device() -> torch.device:
    """This process's device: what `COCOMIX_DEVICE` names, or with "auto", the default, a CUDA GPU where there is one.

    An Apple GPU (mps) is only used when it is named: nobody has run cocomix on one yet.

    Raises:
        CocomixError: it names another device, or one that is not there.
    """
    chosen = os.environ.get(DEVICE) or "auto"
    if chosen not in DEVICES:
        raise CocomixError(f"{DEVICE} is {chosen!r}; set it to one of {', '.join(DEVICES)}")
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen == "cuda":
        if not torch.cuda.is_available():
            raise CocomixError(f"{DEVICE} is cuda and torch finds no such GPU; set it to cpu or auto")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if chosen == "mps":
        if not torch.backends.mps.is_available():
            raise CocomixError(f"{DEVICE} is mps and torch finds no Apple GPU; set it to cpu or auto")
        if world_size() > 1:
            raise CocomixError(
                f"{DEVICE} is mps, and an Apple GPU cannot be shared by {world_size()} processes; start one process, or"
                " set it to cpu"
            )
    return torch.device(chosen)


Value = TypeVar("Value")


def gathered(value: Value) -> list[Value]:
    """Every process's value, in the processes' order; all must call it."""
    if not dist.is_initialized():
        return [value]
    values: list[Value | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType]


def on_main(do: Callable[[], Value]) -> Value:
    """Run `do` in the main process; its result, or its exception, reaches all processes, so none waits for ever."""
    if not dist.is_initialized():
        return do()
    outcome: list[tuple[bool, Value | Exception] | None] = [None]
    if is_main():
        try:
            outcome = [(True, do())]
        except Exception as error:
            outcome = [(False, _portable(error))]
    dist.broadcast_object_list(outcome, src=0)
    assert outcome[0] is not None
    fine, value = outcome[0]
    if not fine:
        raise value  # pyright: ignore[reportGeneralTypeIssues]
    return value  # pyright: ignore[reportReturnType]


def _portable(error: Exception) -> Exception:
    """The error, or a RuntimeError with its message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all processes."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
        value /= world_size()
    return value


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor on the CPU over all processes, on the CPU."""
    if not dist.is_initialized():
        return value
    total = value.to(device(), copy=True)
    dist.all_reduce(total)
    return total.cpu()


def anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any process; all processes get the same answer."""
    return bool(largest_anywhere(float(flag))[0])


def largest_anywhere(*values: float) -> list[float]:
    """The largest of each value over all processes; all get the same answer."""
    if not dist.is_initialized():
        return list(values)
    largest = torch.tensor(values, device=device(), dtype=torch.float32)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


_LOST = re.compile(r"timed? ?out|connection (was )?(closed|reset|refused)|broken pipe|pair closure|peer", re.IGNORECASE)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process did not answer, or is gone."""
    known = isinstance(error, dist.DistBackendError | dist.DistNetworkError)
    return dist.is_initialized() and (known or _LOST.search(str(error)) is not None)


@contextmanager
def waiting_at_most(seconds: float) -> Iterator[None]:
    """Context in which a collective operation waits this long for the other processes, not `LONGEST_WAIT`.

    With NCCL its own watchdog then ends the processes that wait.
    """
    if not dist.is_initialized():
        yield
        return
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.distributed_c10d._set_pg_timeout(LONGEST_WAIT)


def living_processes(within: float) -> tuple[list[int], dict[int, str]]:
    """Who answers through the launch's store `within` seconds after a collective operation failed, and all names.

    Each process that calls it is seen by the others. Where the store itself does not answer, its keeper, process 0 of a
    launch without torchrun, is the one that hangs, and only this process is known to live.
    """
    found: dict[str, Any] = {"living": [rank()], "names": {}}

    def ask() -> None:
        store, numbers = _session["store"], range(world_size())
        store.set(f"lives/{rank()}", "1")
        found["names"] = {n: store.get(f"name/{n}").decode() for n in numbers if store.check([f"name/{n}"])}
        until = time.monotonic() + within
        while time.monotonic() < until and len(found["living"]) < world_size():
            found["living"] = [number for number in numbers if store.check([f"lives/{number}"])]
            time.sleep(0.2)

    if "store" in _session:
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(within + 5)
    return found["living"], found["names"]


SETTLING = 0.2
"""Seconds between the last collective and the end of the process group."""


@contextmanager
def distributed_session() -> Iterator[None]:
    """Join the process group a torchrun launch announces, and leave it at the end."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device())
    store, _, _ = next(rendezvous("env://", timeout=LONGEST_WAIT))
    # A launcher that starts its processes again gives them the same store, with the dead ones' addresses in it.
    store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # pyright: ignore[reportPrivateImportUsage]
    store.set(f"name/{rank()}", f"pid {os.getpid()} on {platform.node()}")
    _session["store"] = store
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank(),
        world_size=world_size(),
        timeout=LONGEST_WAIT,
    )
    try:
        yield
    finally:
        _session.clear()
        # Gloo's thread lets go of a finished collective's tensors with Python's lock, and whoever drops the last
        # reference to the group, as DDP does with the lock held, waits for that thread. So it gets time to do so.
        time.sleep(SETTLING)
        dist.destroy_process_group()


class StopRequest:
    """Remembers SIGTERM, SIGUSR1, SIGHUP and SIGINT while active; a second SIGINT interrupts at once."""

    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in self.numbers:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # ignored on purpose, e.g. by nohup
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:
                break  # not the main thread, which alone may handle signals
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _remember(self, number: int, _frame: object) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class StopNow(StopRequest):
    """Ends the work at once on SIGTERM, SIGUSR1 and SIGHUP while active, for what is saved or quickly done again.

    Raises:
        Interrupted: one came, and no `StopRequest` inside was active.
    """

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

    def _remember(self, number: int, _frame: object) -> None:
        self.received = signal.Signals(number).name
        raise Interrupted("stopped and saved; rerun the same command to resume")
