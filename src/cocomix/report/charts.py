"""Curves as inline SVG that reads well on light and dark pages.

Matplotlib draws on a transparent ground; its black becomes `currentColor`, so axes and text follow the page.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#a3a300")
AXES = {
    "tokens": ("training tokens", 1e6, "M"),
    "flops": ("training FLOPs", 1e12, "T"),
    "seconds": ("training seconds", 1.0, ""),
}


def curve_chart(students: list[dict[str, Any]], axis: str) -> str:
    """Validation perplexity against `axis` (tokens, flops or seconds).

    Seeds are thin lines, their mean a thick one.
    """
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    label, unit, suffix = AXES[axis]
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(5.6, 4.0))
        for number, student in enumerate(students):
            colour, curves = COLOURS[number % len(COLOURS)], [run["curve"] for run in student["runs"] if run["curve"]]
            for curve in curves:
                x = [point[axis] / unit for point in curve]
                axes.plot(x, [point["val_perplexity"] for point in curve], color=colour, linewidth=0.8, alpha=0.45)
            if curves:
                x, y = mean_curve(curves, axis)
                axes.plot(
                    [value / unit for value in x],
                    y,
                    color=colour,
                    linewidth=2.2,
                    marker="o",
                    markersize=3.5,
                    label=student["name"],
                )
        axes.set_xlabel(f"{label}{f' ({suffix})' if suffix else ''}")
        axes.set_ylabel("validation perplexity")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)))
        axes.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.tight_layout()
        return inline_svg(figure, f"Validation perplexity against {label}")


@contextmanager
def drawing() -> Iterator[Any]:
    """`pyplot` set for inline SVG: text stays text, `$` in a name is no formula, ids repeat from run to run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": 13,
        "svg.hashsalt": "cocomix",
        "text.parse_math": False,
    }
    with plt.rc_context(settings):
        yield plt


def inline_svg(figure: Any, description: str) -> str:
    """A pyplot figure as `themed` SVG; the figure is closed."""
    from matplotlib import pyplot as plt

    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return themed(stream.getvalue(), description)


def themed(svg: str, description: str) -> str:
    """Strip the XML prolog and fixed size, let black follow the page, and describe the picture."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("#000000", "currentColor").replace("#b0b0b0", "currentColor")
    # Text carries no fill of its own in matplotlib's SVG and would stay black.
    label = html.escape(description)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" fill="currentColor" ', 1)


def mean_curve(curves: list[list[dict[str, Any]]], axis: str) -> tuple[list[float], list[float]]:
    """Point-by-point mean of curves that share their steps."""
    points = list(zip(*curves, strict=False))
    x = [sum(point[axis] for point in group) / len(group) for group in points]
    return x, [sum(point["val_perplexity"] for point in group) / len(group) for group in points]
