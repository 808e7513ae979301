"""Dose against response, gain against fluency, and leak, as inline SVG for light and dark pages."""

from typing import Any

from cocomix.report.charts import COLOURS, drawing, inline_svg
from cocomix.steering.study.wording import BY

MARKS = "osD^vPX"
"""So that a method can be told without its colour."""


def dose_charts(report: dict[str, Any]) -> str:
    """A panel for each method, for units of dose differ: gain at each dose by both judges, with 95 % bands."""
    methods = {name: one for name, one in report["methods"].items() if len(one["doses"]) > 1}
    with drawing() as plt:
        figure, panels = plt.subplots(1, len(methods), figsize=(3.1 * len(methods), 3.6), sharey=True, squeeze=False)
        for axes, (name, one) in zip(panels[0], methods.items(), strict=True):
            for number, (gain, words) in enumerate(BY.items()):
                curve = [dose[gain] for dose in one["doses"]]
                doses = [dose["dose"] for dose in one["doses"]]
                _band(axes, doses, curve, COLOURS[number], MARKS[number], words)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(doses, [f"{dose:g}" for dose in doses], fontsize=9)
            axes.minorticks_off()
            axes.set_title(name, fontsize=13, loc="left")
            axes.set_xlabel("dose")
            _plain(axes)
        panels[0][0].set_ylabel("gain, positions of 100")
        panels[0][0].legend(frameon=False, fontsize=9, loc="upper left")
        figure.tight_layout()
        return inline_svg(figure, "Gain in presence of the concept against dose, one panel a method")


def frontier_chart(report: dict[str, Any], gain: str) -> str:
    """Gain against fluency loss, a line through the doses of each method; the budget's end is marked."""
    bound, largest = report["bound"], 0.0
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.6))
        for number, (name, one) in enumerate(report["methods"].items()):
            x = [dose["fluency_loss"]["mean"] for dose in one["doses"]]
            _line(axes, x, [dose[gain] for dose in one["doses"]], number, name)
            largest = max(largest, *x)
        axes.axvline(bound, color="black", linewidth=1, linestyle=":")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xlim(right=min(max(largest, bound), 4 * bound) * 1.05)
        axes.set_xlabel(f"fluency loss, nats a token (dotted: the budget's end, {bound:g})")
        axes.set_ylabel(f"gain {BY[gain]},\npositions of 100")
        axes.legend(frameon=False, fontsize=10)
        _plain(axes)
        figure.tight_layout()
        return inline_svg(figure, f"Gain {BY[gain]} against fluency loss, a line a method")


def leak_chart(report: dict[str, Any]) -> str:
    """How far other concepts move, against gain by the SAE; the noise floor is a line."""
    with drawing() as plt:
        figure, axes = plt.subplots(figsize=(6.4, 4.6))
        for number, (name, one) in enumerate(report["methods"].items()):
            if name == "none":
                axes.axhline(one["doses"][0]["leak"]["mean"], color="black", linewidth=1, linestyle=":")
                continue
            x = [100 * dose["presence"]["mean"] for dose in one["doses"]]
            y = [dose["leak"]["mean"] for dose in one["doses"]]
            axes.plot(x, y, color=_colour(number), marker=MARKS[number % len(MARKS)], linewidth=1.8, label=name)
        axes.set_xlabel("gain by the teacher's SAE, positions of 100")
        axes.set_ylabel("leak: others' movement,\nshare of what they are (dotted: noise)")
        axes.legend(frameon=False, fontsize=10)
        _plain(axes)
        figure.tight_layout()
        return inline_svg(figure, "Movement of all other concepts against gain of the wanted one")


def _band(axes: Any, x: list[float], curve: list[dict[str, Any]], colour: str, mark: str, label: str) -> None:
    axes.plot(
        x, [100 * one["mean"] for one in curve], color=colour, marker=mark, linewidth=2, markersize=5, label=label
    )
    low, high = ([100 * one[end] for one in curve] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _line(axes: Any, x: list[float], curve: list[dict[str, Any]], number: int, label: str) -> None:
    y = [100 * one["mean"] for one in curve]
    ends = [[100 * (one["mean"] - one["low"]) for one in curve], [100 * (one["high"] - one["mean"]) for one in curve]]
    style = {"color": _colour(number), "marker": MARKS[number % len(MARKS)], "markersize": 6, "linewidth": 1.8}
    axes.errorbar(x, y, yerr=ends, elinewidth=1, label=label, **style)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
