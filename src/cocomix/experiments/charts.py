"""Bars, frontier and curves of one setting as inline SVG, readable on light and dark pages.

With twenty variants a legend cannot be read, so every point is named where it stands (`cocomix.experiments.naming`);
curves are few, and their legend stands in the order of their ends. Colours are from the blue-orange scale, and never
carry a meaning alone: a verdict shows in the interval too, a curve in its dashes.
"""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from cocomix.experiments.comparisons import compared, equal_tokens, find_student, loss_pairs
from cocomix.report.charts import COLOURS, drawing, inline_svg, mean_curve
from cocomix.report.page import count

# Names beside crowded marks: each takes the nearest free place.

Point = tuple[float, float]

CLEARANCE = 8.0
"""Distance from a mark to its name, and room each mark keeps free around it (half of it), in points."""


def place_names(marks: Sequence[Point], widths: Sequence[float], height: float) -> list[Point]:
    """Lower left corners of names, none overlapping another name or a mark, each as near to its mark as is free.

    Names are placed from the top down, so that a crowd fans out in the order of its marks. Lengths in points.

    Args:
        marks: centre of each mark.
        widths: of each name.
        height: of every name.
    """
    radius = CLEARANCE / 2
    taken = [(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    corners: dict[int, Point] = {}
    for index in sorted(range(len(marks)), key=lambda number: -marks[number][1]):
        for start, bottom in _places(marks[index], widths[index], height):
            box = (start, bottom, start + widths[index], bottom + height)
            if not any(overlap(box, other) for other in taken):
                taken.append(box)
                corners[index] = (start, bottom)
                break
    return [corners[index] for index in range(len(marks))]


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) share any area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _places(mark: Point, width: float, height: float) -> Iterator[Point]:
    """Corners to try, nearest first: right and left of the mark, ever further up and down and out; it never ends."""
    x, y = mark
    ring = 0
    while True:
        for up in (ring, -ring):
            for out in (0, ring):
                bottom = y - height / 2 + up * height / 2
                yield x + CLEARANCE + out * height / 2, bottom
                yield x - CLEARANCE - out * height / 2 - width, bottom
        ring += 1


VERDICTS = {"better": "#3b82f6", "worse": "#e8821a", "undecided": "#8a8f98"}
WIDTH = 14.0
"""Inches; the page shows an inch about as wide as 88 pixels."""

FONT = 11
"""Points; size of a mark's name."""
MOST_CURVES = 8
UNSEEN = 0.4
"""Share of a curve's beginning that is not drawn."""
DASHES = ("-", "--", "-.", ":")


def difference_bars(setting: dict[str, Any]) -> str | None:
    """Test-loss difference to the baseline, best on top: bar, interval, a dot for each seed. None without variants."""
    base = setting["baseline"]
    names = [one["name"] for one in setting["students"] if one["name"] != base and equal_tokens(setting, one["name"])]
    by_name = {name: list(loss_pairs(setting, name, base).values()) for name in names}
    rows = sorted(
        ((name, compared(values), values) for name, values in by_name.items() if values),
        key=lambda row: -row[1]["difference"],
    )
    if not rows:
        return None
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 1.1 + 0.36 * len(rows)))
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
        figure, axes = plt.subplots(figsize=(WIDTH, max(5.0, 0.9 + 0.28 * len(points))))
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
        _name_marks(axes, [(name, x, y, "black") for name, (x, y) in points.items()])
        return inline_svg(figure, f"{setting['title']}: test perplexity against training FLOPs")


def curves(setting: dict[str, Any], names: Sequence[str]) -> str | None:
    """Validation perplexity against tokens, mean over seeds, of at most eight variants; None if none has a curve.

    The first two fifths of each are cut off: all fall together there, and hide what comes after.
    """
    found = [student for student in (find_student(setting, name) for name in names[:MOST_CURVES]) if student]
    lines = {
        student["name"]: mean_curve(kept, "tokens")
        for student in found
        if (kept := [run["curve"] for run in student["runs"] if run["curve"]])
    }
    if not lines:
        return None
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(WIDTH, 5.6))
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


def curve_names(results: dict[str, Any], setting: dict[str, Any]) -> list[str]:
    """The variants whose curves are drawn: baseline, frontier, then those the claims name, in order."""
    named = [
        comparison[role]
        for claim in sorted(results["claims"], key=lambda claim: claim["id"])
        for comparison in claim.get("compare") or ()
        for role in ("better", "than")
    ]
    wanted = dict.fromkeys([setting["baseline"], *results["frontier"], *named])
    here = {student["name"] for student in setting["students"]}
    return [name for name in wanted if name in here][:MOST_CURVES]


def _plain_ticks(axes: Any) -> None:
    """Perplexity as plain numbers, on either scale."""
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))


def _name_marks(axes: Any, marks: list[tuple[str, float, float, str]]) -> None:
    """Names (name, x, y, colour) beside their marks, moved where they would overlap and then tied by a line."""
    axes.figure.canvas.draw()  # settles the limits
    points = [axes.transData.transform((x, y)) * 72 / axes.figure.dpi for _, x, y, _ in marks]
    widths = [len(name) * FONT * 0.6 for name, *_ in marks]
    corners = place_names([(x, y) for x, y in points], widths, FONT * 1.25)
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
