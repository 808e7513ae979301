"""`report.json` and `report.html`: the second is one file that asks for nothing from outside."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cocomix.report.charts import AXES, COLOURS, curve_chart, drawing, inline_svg
from cocomix.report.statistics import derive, headline
from cocomix.report.tables import COLUMNS, rows
from cocomix.utils.files import write_json, write_text


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write `report.json` (raw results and everything derived) and `report.html` into `folder`, atomically.

    Args:
        results: what `cocomix.pipeline.run.collect_results` returns.
    """
    derived = derive(results)
    sentences = headline(results, derived)
    complete = results | {"derived": derived, "headline": sentences}
    write_json(folder / "report.json", complete)
    environment = Environment(loader=PackageLoader("cocomix", "report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"count": count, "clock": _clock}
    page = environment.get_template("page.html.j2").render(
        results=results,
        derived=derived,
        headline=sentences,
        columns=COLUMNS,
        rows=rows(results),
        colours=COLOURS,
        charts=[Markup(curve_chart(results["students"], axis)) for axis in AXES],
        config=yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True),
        css=Markup((resources.files("cocomix.report") / "page.css").read_text(encoding="utf-8")),
    )
    write_text(folder / "report.html", page)


def count(value: float | None) -> str:
    """`2751488` as `2.75M`."""
    if value is None:
        return "–"
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# An autoencoder's quality as one page: the figures, and how often its latents fire.


def write_sae_page(figures: dict[str, Any], path: Path) -> None:
    """Write the figures of the autoencoder's stage to `path`, one file that asks for nothing from outside."""
    environment = Environment(loader=PackageLoader("cocomix", "report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"count": count}
    page = environment.get_template("sae.html.j2").render(
        sae=figures,
        chart=Markup(density_chart(figures["density"], figures["dead_share"], figures["measured_tokens"])),
        css=Markup((resources.files("cocomix.report") / "page.css").read_text(encoding="utf-8")),
    )
    write_text(path, page)


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
