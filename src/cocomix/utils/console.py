"""Progress of a run: a live bar with an estimated time on a terminal, plain lines elsewhere.

The estimate is remaining steps times the mean step time of the stage so far, which is honest for stages whose
steps cost the same, as all of ours do.
"""

import os
import time
from contextlib import AbstractContextManager
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Where a run talks to its user.

console = Console()
errors = Console(stderr=True)


# Who this process is among those of a launch, read from what torchrun sets, without loading torch.


def rank() -> int:
    """This process's number, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes take part, 1 alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def wait_for_main_to_say_it() -> None:
    """Give the main process time to report an error that all have; a launcher then ends the others unheard."""
    if not is_main():
        time.sleep(3)


class StageProgress(AbstractContextManager["StageProgress"]):
    """Callable given to a stage: `progress(step, total, metrics)`.

    Args:
        console: where to draw.
        title: the stage's title.
        quiet: draw nothing (other ranks, tests).
        every_seconds: interval of plain lines where there is no terminal.
    """

    def __init__(self, console: Console, title: str, *, quiet: bool = False, every_seconds: float = 20.0) -> None:
        self._console = console
        self._title = title
        self._quiet = quiet
        self._every = every_seconds
        self._first: tuple[float, int] | None = None
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=None, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: int, total: int | None, metrics: dict[str, Any] | None = None) -> None:
        """Report that `step` of `total` steps are done; None: nobody knows how many there will be."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = (now, step)
        note = self._note(now, step, total, metrics or {})
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=total, note=note)
        elif now - self._last_line >= self._every:
            self._last_line = now
            steps = "" if total is None else f"{step}/{total}  "
            self._console.print(f"  {self._title}: {steps}{note}", highlight=False)

    def _note(self, now: float, step: int, total: int | None, metrics: dict[str, Any]) -> str:
        assert self._first is not None
        start, first = self._first
        parts = []
        if step > first and total is not None:
            remaining = (now - start) / (step - first) * (total - step)
            parts.append(f"about {duration(remaining)} left")
        for name, value in metrics.items():
            parts.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {float(value):.3f}")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """`75.2` as `1 min 15 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
