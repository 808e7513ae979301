"""Numbers as text: what cells, captions and sentences of all reports are written with."""

from typing import Any

GAIN_LABELS = {
    "presence": "by an SAE of the teacher",
    "words": "by its distinguishing tokens",
    "follow": "by the tokens that follow it",
}
"""What a gain of steering is measured by."""


def count(value: float | None) -> str:
    """`2751488` as `2.75M`."""
    if value is None:
        return "–"
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """`75` as `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def spread(stats: dict[str, Any], sign: str = "", digits: int = 2) -> str:
    """A mean with half its 95 % interval where there is one: `93.10 ± 0.40`; with sign "+", `+0.12 ± 0.04`."""
    half = stats["ci95"]
    return f"{stats['mean']:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def difference(stats: dict[str, Any], digits: int = 4) -> str:
    """A difference and its interval: `-0.0123 [-0.0200, -0.0046]`."""
    if stats["difference"] is None:
        return "not measured"
    text = f"{stats['difference']:+.{digits}f}"
    if stats["ci95"] is None:
        return text + " (no interval)"
    low, high = stats["ci95"]
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"


def percent(share: float) -> str:
    """A share of positions, in points; `0.0123` is 1.2."""
    return f"{round(100 * share, 1) + 0.0:.1f}"  # no minus before 0


def between(stats: dict[str, Any]) -> str:
    """A mean share and its interval, in points: `1.2 (0.9 to 1.5)`."""
    return f"{percent(stats['mean'])} ({percent(stats['low'])} to {percent(stats['high'])})"


def signed(value: float | None, digits: int = 4) -> str:
    """`0.0123` as `+0.0123`."""
    return "–" if value is None else f"{value:+.{digits}f}"


def times(value: float | None) -> str:
    """`0.8` as `0.80x`."""
    return "–" if value is None else f"{value:.2f}x"


def missing(row: dict[str, Any]) -> str:
    """Why a cell of a ranking has no figure, in a word or two; the whole reason is its tooltip."""
    return row.get("range") or "–"
