"""Charts of all reports as inline SVG that reads well on light and dark pages.

Matplotlib draws on a transparent ground; its black becomes `currentColor`, so axes and text follow the page. Colours
never carry a meaning alone: a verdict shows in the interval too, a curve in its dashes, a method in its marks.

In order: the drawing primitives; training curves and the density of an autoencoder's latents; one setting of an
experiment; a steering study.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import Any

from cocomix.report.formats import GAIN_LABELS, count
from cocomix.report.label_placement import place_labels
from cocomix.report.statistics import compared, equal_tokens, find_student, loss_pairs

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#a3a300")
AXES = {
    "tokens": ("training tokens", 1e6, "M"),
    "flops": ("training FLOPs", 1e12, "T"),
    "seconds": ("training seconds", 1.0, ""),
}
VERDICTS = {"better": "#3b82f6", "worse": "#e8821a", "undecided": "#8a8f98"}
WIDE = 14.0
"""Inches; the page shows an inch about as wide as 88 pixels."""
FONT = 11
"""Points; size of a mark's label."""
MOST_CURVES = 8
UNSEEN = 0.4
"""Share of a curve's beginning that is not drawn."""
DASHES = ("-", "--", "-.", ":")
MARKS = "osD^vPX"
"""So that a method can be told without its colour."""


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


def density_chart(density: dict[str, list[float]], dead_share: float, tokens: int) -> str:
    """Bars of `concepts.quality.density` as inline SVG; the silent latents are named, they have no logarithm."""
    edges, latents = density["edges"], density["latents"]
    seen = [place for place, number in enumerate(latents) if number]
    # Bins rarer than the rarest latent would be empty ground.
    first = min([*seen, len(latents) - 1])
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(8.4, 3.6))
        width = edges[1] - edges[0]
        axes.bar(edges[first:-1], latents[first:], width=width * 0.92, align="edge", color=COLOURS[0], linewidth=0)
        axes.set_xlim(edges[first] - width, 0.02)
        axes.set_xlabel("log10 of the share of tokens at which a latent is active")
        axes.set_ylabel("latents")
        axes.set_title(f"{dead_share:.1%} of the latents are silent on {count(tokens)} tokens", fontsize=12, loc="left")
        axes.grid(alpha=0.25, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        return inline_svg(figure, "Histogram of latents by the logarithm of how often they are active")


def difference_bars(setting: dict[str, Any]) -> str | None:
    """Test-loss difference to the baseline, best on top: bar, interval, a dot for each seed. None without variants."""
    base = setting["baseline"]
    names = [student["name"] for student in setting["students"]]
    names = [name for name in names if name != base and equal_tokens(setting, name)]
    by_name = {name: list(loss_pairs(setting, name, base).values()) for name in names}
    rows = sorted(
        ((name, compared(values), values) for name, values in by_name.items() if values),
        key=lambda row: -row[1]["difference"],
    )
    if not rows:
        return None
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(WIDE, 1.1 + 0.36 * len(rows)))
        for place, (_, stats, values) in enumerate(rows):
            colour = VERDICTS[stats["verdict"]]
            axes.barh(place, stats["difference"], color=colour, alpha=0.45, height=0.66, linewidth=0)
            if stats["ci95"]:
                axes.plot(stats["ci95"], [place, place], color=colour, linewidth=2.4, solid_capstyle="butt")
            axes.plot(values, [place] * len(values), "o", color="black", markersize=3.6, alpha=0.75, markeredgewidth=0)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlabel(f"test loss less that of {base} (nats a token; left of 0 is better)")
        axes.grid(alpha=0.25, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.tight_layout()
        return inline_svg(figure, f"{setting['title']}: difference in test loss to {base}")


def frontier_scatter(setting: dict[str, Any], frontier: Sequence[str]) -> str | None:
    """Mean test perplexity against training FLOPs (logarithmic), the frontier joined by a line; None without runs."""
    points = {
        student["name"]: (
            mean(run["flops"] for run in student["runs"]),
            mean(run["test_perplexity"] for run in student["runs"]),
        )
        for student in setting["students"]
        if student["runs"]
    }
    if not points:
        return None
    line = sorted(points[name] for name in frontier if name in points)
    from matplotlib.ticker import FuncFormatter, LogLocator

    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(WIDE, max(5.0, 0.9 + 0.28 * len(points))))
        axes.plot([x for x, _ in line], [y for _, y in line], color="black", linewidth=1.6, zorder=1)
        for name, (x, y) in points.items():
            on_line = name in frontier
            axes.plot(x, y, "s" if on_line else "o", color="black" if on_line else COLOURS[0], markersize=6, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")  # losses are interpolated, so the frontier is straight here
        for place in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            place(FuncFormatter(lambda value, _: count(value)))
        axes.xaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 4, 5, 7)))
        axes.set_xlabel("training FLOPs, without labels")
        axes.set_ylabel("test perplexity")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _plain_ticks(axes)
        axes.margins(x=0.08)
        figure.tight_layout()
        _label_marks(axes, [(name, x, y, "black") for name, (x, y) in points.items()])
        return inline_svg(figure, f"{setting['title']}: test perplexity against training FLOPs")


def perplexity_curves(setting: dict[str, Any], names: Sequence[str]) -> str | None:
    """Validation perplexity against tokens, mean over seeds, of at most eight variants; None if none has a curve.

    The first two fifths of each are cut off: all fall together there, and hide what comes after.
    """
    students = [student for student in (find_student(setting, name) for name in names[:MOST_CURVES]) if student]
    lines = {
        student["name"]: mean_curve(kept, "tokens")
        for student in students
        if (kept := [run["curve"] for run in student["runs"] if run["curve"]])
    }
    if not lines:
        return None
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(WIDE, 5.6))
        for number, (name, (x, y)) in enumerate(lines.items()):
            kept = [(a / 1e6, b) for a, b in zip(x, y, strict=True) if a >= UNSEEN * x[-1]]
            axes.plot(
                *zip(*kept, strict=True),
                DASHES[number % len(DASHES)],
                color=COLOURS[number % len(COLOURS)],
                linewidth=2,
                marker="o",
                markevery=[-1],
                markersize=5,
                label=f"{name}: {y[-1]:.2f}",
            )
        axes.set_yscale("log")
        axes.set_xlabel("training tokens (M)")
        axes.set_ylabel("validation perplexity")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        _plain_ticks(axes)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: -list(lines.values())[index][1][-1])
        axes.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            title="at the end",
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            handlelength=3,
        )
        figure.tight_layout()
        return inline_svg(figure, f"{setting['title']}: validation perplexity against training tokens")


def dose_charts(report: dict[str, Any]) -> str:
    """A panel for each method, because units of dose differ: gain at each dose by each judge, with 95 % bands."""
    methods = {name: method for name, method in report["methods"].items() if len(method["doses"]) > 1}
    with drawing() as plt:
        figure, panels = plt.subplots(1, len(methods), figsize=(3.1 * len(methods), 3.6), sharey=True, squeeze=False)
        for axes, (name, method) in zip(panels[0], methods.items(), strict=True):
            for number, (gain, words) in enumerate(GAIN_LABELS.items()):
                curve = [dose[gain] for dose in method["doses"]]
                doses = [dose["dose"] for dose in method["doses"]]
                _band(axes, doses, curve, COLOURS[number], MARKS[number], words)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(doses, [f"{dose:g}" for dose in doses], fontsize=9)
            axes.minorticks_off()
            axes.set_title(name, fontsize=13, loc="left")
            axes.set_xlabel("dose")
            _clean(axes)
        panels[0][0].set_ylabel("gain, positions of 100")
        panels[0][0].legend(frameon=False, fontsize=9, loc="upper left")
        figure.tight_layout()
        return inline_svg(figure, "Gain in presence of the concept against dose, one panel a method")


def fluency_chart(report: dict[str, Any], gain: str) -> str:
    """Gain against fluency loss, a line through the doses of each method; the budget's end is marked."""
    bound, largest = report["bound"], 0.0
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.6))
        for number, (name, method) in enumerate(report["methods"].items()):
            x = [dose["fluency_loss"]["mean"] for dose in method["doses"]]
            _line(axes, x, [dose[gain] for dose in method["doses"]], number, name)
            largest = max(largest, *x)
        axes.axvline(bound, color="black", linewidth=1, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlim(right=min(max(largest, bound), 4 * bound) * 1.05)
        axes.set_xlabel(f"fluency loss, nats a token (dotted: the budget's end, {bound:g})")
        axes.set_ylabel(f"gain {GAIN_LABELS[gain]},\npositions of 100")
        axes.legend(frameon=False, fontsize=10)
        _clean(axes)
        figure.tight_layout()
        return inline_svg(figure, f"Gain {GAIN_LABELS[gain]} against fluency loss, a line a method")


def leak_chart(report: dict[str, Any]) -> str:
    """How far other concepts move, against gain by the SAE; the noise floor is a line."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.6))
        for number, (name, method) in enumerate(report["methods"].items()):
            if name == "none":
                axes.axhline(method["doses"][0]["leak"]["mean"], color="black", linewidth=1, linestyle=":")
                continue
            x = [100 * dose["presence"]["mean"] for dose in method["doses"]]
            y = [dose["leak"]["mean"] for dose in method["doses"]]
            axes.plot(x, y, color=_colour(number), marker=MARKS[number % len(MARKS)], linewidth=1.8, label=name)
        axes.set_xlabel("gain by an SAE of the teacher, positions of 100")
        axes.set_ylabel("leak: others' movement,\nshare of what they are (dotted: noise)")
        axes.legend(frameon=False, fontsize=10)
        _clean(axes)
        figure.tight_layout()
        return inline_svg(figure, "Movement of all other concepts against gain of the wanted one")


def _band(axes: Any, x: list[float], curve: list[dict[str, Any]], colour: str, mark: str, label: str) -> None:
    axes.plot(
        x, [100 * dose["mean"] for dose in curve], color=colour, marker=mark, linewidth=2, markersize=5, label=label
    )
    low, high = ([100 * dose[end] for dose in curve] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _line(axes: Any, x: list[float], curve: list[dict[str, Any]], number: int, label: str) -> None:
    y = [100 * dose["mean"] for dose in curve]
    ends = [
        [100 * (dose["mean"] - dose["low"]) for dose in curve],
        [100 * (dose["high"] - dose["mean"]) for dose in curve],
    ]
    style = {"color": _colour(number), "marker": MARKS[number % len(MARKS)], "markersize": 6, "linewidth": 1.8}
    axes.errorbar(x, y, yerr=ends, elinewidth=1, label=label, **style)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _clean(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_ticks(axes: Any) -> None:
    """Perplexity as plain numbers, on either scale."""
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _label_marks(axes: Any, marks: list[tuple[str, float, float, str]]) -> None:
    """Labels (name, x, y, colour) beside their marks, moved where they would overlap and then tied by a line."""
    axes.figure.canvas.draw()  # settles the limits
    points = [axes.transData.transform((x, y)) * 72 / axes.figure.dpi for _, x, y, _ in marks]
    widths = [len(name) * FONT * 0.6 for name, *_ in marks]
    corners = place_labels([(x, y) for x, y in points], widths, FONT * 1.25)
    for (name, x, y, colour), (px, py), (corner, bottom) in zip(marks, points, corners, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(corner - px, bottom - py + FONT * 0.625),
            textcoords="offset points",
            va="center",
            fontsize=FONT,
            color="black",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
