"""Charts of scaling: losses with their fitted laws, and gains over the baseline, a panel for each size."""

from typing import Any

import numpy as np

from cocomix.report.charts import COLOURS, DASHES, MARKS, drawing, inline_svg
from cocomix.report.formats import count


def loss_panels(section: dict[str, Any]) -> str:
    """Mean test loss against tokens (logarithmic) with each family's law; families differ in mark and dash, too."""
    families = list(section["laws"])
    with drawing() as plt:
        figure, panels = _panels(plt, section)
        for axes, (size, parameters) in zip(panels, section["sizes"].items(), strict=True):
            for number, family in enumerate(families):
                cells = sorted(
                    (point["tokens"], point["loss"])
                    for point in section["points"]
                    if (point["family"], point["size"]) == (family, size)
                )
                if not cells:
                    continue
                law = _law(section, family, size)
                tokens = np.geomspace(cells[0][0], cells[-1][0], 40)
                colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
                axes.plot(tokens, _losses(section, law, parameters, tokens), dash, color=colour, linewidth=1.8)
                mark = MARKS[number % len(MARKS)]
                axes.plot(*zip(*cells, strict=True), mark, color=colour, markersize=6, label=family)
            _finish(axes, size, parameters)
        panels[0].set_ylabel("test loss, nats a token")
        panels[-1].legend(frameon=False, fontsize=11)
        figure.tight_layout()
        return inline_svg(figure, "Test loss against training tokens, a panel for each size, with the fitted laws")


def gain_panels(section: dict[str, Any]) -> str:
    """Gain in nats against tokens (logarithmic), with its band; families as in the panels of losses."""
    families = list(section["laws"])
    with drawing() as plt:
        figure, panels = _panels(plt, section)
        for place, (axes, (size, parameters)) in enumerate(zip(panels, section["sizes"].items(), strict=True)):
            for family, rows in section["gains"].items():
                number, row = families.index(family), rows[place]
                colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
                axes.plot(row["tokens"], row["gain"], dash, color=colour, linewidth=1.8)
                axes.fill_between(row["tokens"], row["low"], row["high"], color=colour, alpha=0.2, linewidth=0)
                cells = sorted((point["tokens"], point["gain"]) for point in row["measured"])
                mark = MARKS[number % len(MARKS)]
                axes.plot(*zip(*cells, strict=True), mark, color=colour, markersize=6, label=family)
            axes.axhline(0, color="black", linewidth=1)
            _finish(axes, size, parameters)
        panels[0].set_ylabel(f"gain over {section['baseline']}, nats\n(above 0 is better)")
        panels[-1].legend(frameon=False, fontsize=11)
        figure.tight_layout()
        return inline_svg(figure, f"Gain over {section['baseline']} against training tokens, a panel for each size")


def _panels(plt: Any, section: dict[str, Any]) -> tuple[Any, Any]:
    number = len(section["sizes"])
    figure, panels = plt.subplots(1, number, figsize=(4.4 * number + 0.6, 4.2), sharey=True, squeeze=False)
    return figure, panels[0]


def _finish(axes: Any, size: str, parameters: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: count(tokens)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{size}: {count(parameters)} parameters", fontsize=13, loc="left")
    axes.set_xlabel("training tokens")
    above = axes.secondary_xaxis("top", functions=(lambda x: x / parameters, lambda x: x * parameters))
    above.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g} a param."))
    above.xaxis.set_minor_formatter(NullFormatter())
    above.tick_params(labelsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _law(section: dict[str, Any], family: str, size: str) -> dict[str, Any]:
    return next(law for law in section["laws"][family] if law["at"] in ("all", size))


def _losses(section: dict[str, Any], law: dict[str, Any], parameters: float, tokens: np.ndarray) -> np.ndarray:
    by_tokens = law["data"]["value"] * (tokens / section["scale"]["tokens"]) ** -law["data_exponent"]["value"]
    if not section["joint"]:
        return law["floor"]["value"] + by_tokens
    ratio = parameters / section["scale"]["parameters"]
    return law["floor"]["value"] + law["size"]["value"] * ratio ** -law["size_exponent"]["value"] + by_tokens
