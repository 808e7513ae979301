"""What a run shows its user: consoles, progress, durations, and which process speaks.

- `Terminal` shows what it is given: no text is parsed as markup, and nothing unprintable reaches the terminal.
- `use_any_encoding` keeps a character that standard output cannot encode from ending a command.
- `rank`, `world_size` and `is_main` read what torchrun sets in the environment, without loading torch.
- `StageProgress` is a live bar with an estimated time on a terminal, and plain lines elsewhere. The estimate is the
  remaining steps times the mean step time of the stage so far, which is right for stages whose steps cost the same, as
  all of ours do. The first steps cost more (memory is allocated, kernels are chosen, files are read for the first
  time), so they are left out of the mean, and so is the slowest step after them; until some are done there is none.
- `Stopwatch` counts a stage's seconds over interrupted attempts, but not while the process is stopped.
"""

import io
import math
import os
import re
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from cocomix.utils.clock import CLOCK
from cocomix.utils.files import read_json, write_json

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What commands a terminal, reorders text, or is no character: names and texts may contain all of it."""


def printable(text: str) -> str:
    """`text` with escapes in place of what is not for a terminal; tabs and line breaks stay."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class Terminal(Console):
    """A Rich console on which text is text: a folder called `[red]` or one with an escape sequence is shown as it is.

    Styles are given as `style=` or by `rich.text.Text`, never inside a string.
    """

    def __init__(self, **options: Any) -> None:
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
        super().__init__(**(plain | options))

    def render_str(self, text: str, **options: Any) -> Text:
        """A string in a table or a line."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is printed passes here, inner parts first."""
        if isinstance(renderable, Text):
            renderable = _printable_text(renderable)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def print_json(self, json: str | None = None, **options: Any) -> None:
        """ASCII alone, so that what a program reads from it does not depend on the encoding of standard output."""
        ascii_only: dict[str, Any] = {"ensure_ascii": True}
        super().print_json(json, **(ascii_only | options))


def _printable_text(text: Text) -> Text:
    """`printable` of a text with styles."""
    places = [place for match in UNPRINTABLE.finditer(text.plain) for place in match.span()]
    if not places:
        return text
    parts = Text(justify=text.justify, overflow=text.overflow, no_wrap=text.no_wrap, end=text.end)
    for part in text.divide(sorted(set(places))):
        if UNPRINTABLE.match(part.plain):
            part.plain = printable(part.plain)
        parts.append_text(part)
    return parts


console = Terminal()
errors = Terminal(stderr=True)


def use_any_encoding() -> None:
    """Let standard output and error write `?` where their encoding lacks a character; for the entry of a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def rank() -> int:
    """This process's number, 0 without a launch."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes take part, 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def wait_for_main_to_report() -> None:
    """Give the main process time to report an error that all processes have, before a launcher ends them all."""
    if not is_main():
        time.sleep(3)


LEFT_OUT_STEPS = 2
"""Steps at the start of a stage that its mean step time leaves out."""
STEPS_BEFORE_ESTIMATE, SECONDS_BEFORE_ESTIMATE = 8, 2.0
"""What must be measured after those before a time is estimated; of a stage of few steps, a quarter of its steps."""


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
        self._base: tuple[float, int] | None = None
        self._previous = self._slowest = (0.0, 0)
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
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
        """Report that `step` of `total` steps are done; None: the number of steps is not known."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first, self._base = (now, step), None
        elif self._base is None and step - self._first[1] >= LEFT_OUT_STEPS:
            self._base, self._slowest = (now, step), (0.0, 0)
        elif self._base is not None and now - self._previous[0] > self._slowest[0]:
            self._slowest = (now - self._previous[0], step - self._previous[1])
        self._previous = (now, step)
        note = self._note(now, step, total, metrics or {})
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=total, note=note)
        elif now - self._last_line >= self._every:
            self._last_line = now
            steps = "" if total is None else f"{step}/{total}  "
            self._console.print(f"  {self._title}: {steps}{note}", highlight=False, markup=False)

    def _note(self, now: float, step: int, total: int | None, metrics: dict[str, Any]) -> str:
        parts = []
        if self._base is not None and total is not None:
            measured = step - self._base[1]
            seconds, steps = now - self._base[0] - self._slowest[0], measured - self._slowest[1]
            needed = min(STEPS_BEFORE_ESTIMATE, max(2, (total - self._base[1]) // 4))
            if measured >= needed and steps > 0 and now - self._base[0] >= SECONDS_BEFORE_ESTIMATE:
                parts.append(f"about {duration(seconds / steps * (total - step))} left")
        for name, value in metrics.items():
            parts.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {float(value):.3f}")
        return "  ".join(parts)


def duration(seconds: float) -> str:
    """`75.2` as `1 min 15 s`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def in_bytes(size: int) -> str:
    """`1234567` as `1.2 MB`."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


class Stopwatch:
    """Seconds of work so far, including those of interrupted attempts.

    Args:
        path: file that keeps the seconds between attempts.
        writes: whether this process writes it (one of a launch does).
        every_seconds: at most this much is lost to a kill.
    """

    def __init__(self, path: Path, *, writes: bool = True, every_seconds: float = 5.0) -> None:
        self._path, self._writes, self._every = path, writes, every_seconds
        self._before = self._read()
        self._begun = self._kept = CLOCK.seconds()

    @property
    def seconds(self) -> float:
        """All seconds so far."""
        return self._before + CLOCK.seconds() - self._begun

    def tick(self) -> None:
        """Write the seconds if it is time to."""
        if CLOCK.seconds() - self._kept > self._every:
            self.keep()

    def keep(self) -> None:
        """Write the seconds; a full disk is reported elsewhere."""
        self._kept = CLOCK.seconds()
        if self._writes:
            try:
                write_json(self._path, {"seconds": self.seconds})
            except OSError:
                return

    def _read(self) -> float:
        try:
            seconds = float(read_json(self._path)["seconds"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return 0.0
        return seconds if 0 <= seconds < math.inf else 0.0
