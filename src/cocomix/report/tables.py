"""Tables of all reports: cells for the page, and a narrower table of the same for the terminal.

In order: students of a run (80 columns), methods of a steering study (80 columns), claims and best variants of an
experiment (100 columns).
"""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from cocomix.report.formats import GAIN_LABELS, between, difference, percent, spread
from cocomix.report.statistics import derive, headline

# --- students of a run ---

BITS = "test bits/byte"
STUDENT_COLUMNS: tuple[str, ...] = (
    "student",
    "width",
    "parameters",
    "val ppl",
    "test ppl",
    BITS,
    "vs baseline",
    "train s",
    "PFLOP",
    "tokens",
    "recall",
)
STUDENT_HEADINGS = {
    "student": "student",
    "parameters": "params",
    "test ppl": "test ppl",
    BITS: "b/byte",
    "vs baseline": "vs base",
    "tokens": "tokens",
    "train s": "train s",
    "recall": "recall",
}
"""The columns that fit 80 characters, and their short headings there."""


def student_columns(results: dict[str, Any]) -> list[str]:
    """Columns of the students' table: `STUDENT_COLUMNS`, without bits per byte where no student's are known."""
    known = any("test_bits_per_byte" in figures for figures in derive(results)["students"].values())
    return [column for column in STUDENT_COLUMNS if known or column != BITS]


def student_rows(results: dict[str, Any]) -> list[list[str]]:
    """Cells of the students' table, one list a student, in the order of `student_columns`."""
    derived, columns = derive(results), student_columns(results)
    table = []
    for student in results["students"]:
        name, figures = student["name"], derived["students"][student["name"]]
        against = figures["difference"].get(results["baseline"])
        reach = figures["to_same_perplexity"].get(results["baseline"])
        recall = figures["recall"]
        bits = figures.get("test_bits_per_byte")
        cells = dict(
            zip(
                STUDENT_COLUMNS,
                [
                    name,
                    str(student["width"]),
                    f"{student['parameters'] / 1e6:.2f}M",
                    spread(figures["val_perplexity"]),
                    spread(figures["test_perplexity"]),
                    "–" if bits is None else spread(bits, digits=4),
                    "" if against is None else spread(against["test_perplexity"], sign="+"),
                    f"{figures['seconds']['mean']:.0f}",
                    f"{figures['flops']['mean'] / 1e15:.3f}",
                    "" if reach is None else ("never" if reach["tokens"] is None else f"{reach['tokens']:.2f}x"),
                    "" if recall is None else f"{recall['mean']:.3f}",
                ],
                strict=True,
            )
        )
        table.append([cells[column] for column in columns])
    return table


def summary_table(results: dict[str, Any]) -> Group:
    """A run's result for the terminal: the table, then the result in words."""
    seeds = len(results["students"][0]["runs"])
    table = Table(title=results["title"], title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = student_columns(results)
    headings = {column: heading for column, heading in STUDENT_HEADINGS.items() if column in columns}
    for heading in headings.values():
        table.add_column(
            heading, justify="left" if heading == "student" else "right", no_wrap=heading != "student", overflow="fold"
        )
    for row in student_rows(results):
        cells: dict[str, str] = dict(zip(columns, row, strict=True))
        for column in headings.keys() & {"test ppl", BITS}:
            cells[column] = cells[column].partition(" ")[0]  # its interval is on the page; paired ones say more
        table.add_row(*(cells[column] for column in headings))
    note = (
        f"{seeds} seed{'s' if seeds > 1 else ''}. vs base: difference in test perplexity from {results['baseline']},"
        " ± the 95 % interval paired by seed. tokens: share of them that reached its final validation perplexity."
    )
    return Group(table, Text(note, style="dim"), *(Text(sentence) for sentence in headline(results, derive(results))))


# --- methods of a steering study ---

METHOD_COLUMNS = (
    "method",
    "area, SAE",
    "area, tokens",
    "area, next",
    "best dose",
    "gain, SAE",
    "gain, tokens",
    "gain, next",
    "nats lost",
    "distinct-2",
    "repeated-4",
    "leak",
)
METHOD_HEADINGS = {
    "method": "method",
    "area, SAE": "area, SAE",
    "area, tokens": "area, tokens",
    "area, next": "area, next",
    "best dose": "dose",
    "gain, SAE": "gain",
    "nats lost": "nats",
}
"""The columns that fit 80 characters, and their short headings there."""


def method_rows(report: dict[str, Any]) -> list[list[str]]:
    """Cells of the methods' table, one list a method, in the order of `METHOD_COLUMNS`."""
    return [[name, *_method_cells(method)] for name, method in report["methods"].items()]


def gains_legend(report: dict[str, Any]) -> str:
    """What the columns of gains are."""
    subjects = {method["subject"]: method["unsteered"] for method in report["methods"].values()}
    base = "; ".join(
        f"{subject}: " + ", ".join(f"{percent(unsteered[gain])} {label}" for gain, label in GAIN_LABELS.items())
        for subject, unsteered in subjects.items()
    )
    return (
        "Gains are generated positions of 100 that carry the concept, more than unsteered, with 95 % intervals: SAE, by"
        " the SAE that judges; tokens, by tokens that distinguish the concept; next, by tokens that distinguish what"
        " follows it. area: mean of the best gain over all fluency budgets from 0 to"
        f" {report['bound']:g} nat a token, of doses whose texts do not repeat themselves."
        " best dose: the one of the largest gain by the SAE within that budget, and"
        f" what it does. Unsteered text has it at, of 100 positions, {base}."
    )


def costs_legend(report: dict[str, Any]) -> str:
    """What the columns of costs are."""
    floor = report["methods"].get("none")
    leak = "" if floor is None else f"; {floor['doses'][0]['leak']['mean']:.2f} for a second unsteered sample"
    return (
        "nats lost: a token, under the independent model. distinct-2: different pairs of tokens, as a share of all in a"
        " text. repeated-4: share of 4-grams that came before in their text. leak: how far all other concepts move, as"
        f" a share of what they are{leak}."
    )


def steering_table(report: dict[str, Any]) -> Group:
    """A steering study's result for the terminal: table, legend and headline."""
    table = Table(title=report["title"], title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column, heading in METHOD_HEADINGS.items():
        table.add_column(heading, justify="left" if column == "method" else "right", no_wrap=True)
    for row in method_rows(report):
        cells: dict[str, str] = dict(zip(METHOD_COLUMNS, row, strict=True))
        cells["gain, SAE"] = cells["gain, SAE"].partition(" ")[0]  # its interval is on the page
        table.add_row(*(Text(cells[column].replace(" to ", "–")) for column in METHOD_HEADINGS))
    sentences = [Text(sentence) for sentence in report["headline"]]
    return Group(table, Text(gains_legend(report), style="dim"), *sentences)


def _method_cells(method: dict[str, Any]) -> list[str]:
    areas = [between(method["area"][gain]) for gain in GAIN_LABELS]
    best = next((dose for dose in method["doses"] if dose["dose"] == method["best"]), None)
    if best is None:
        return [*areas, *["–"] * (len(METHOD_COLUMNS) - 1 - len(areas))]
    gains = [between(best[gain]) for gain in GAIN_LABELS]
    rest = [f"{best[figure]['mean']:.2f}" for figure in ("distinct2", "repeated4", "leak")]
    return [*areas, f"{best['dose']:g}", *gains, f"{best['fluency_loss']['mean']:+.2f}", *rest]


# --- claims and best variants of an experiment ---

EXPERIMENT_WIDTH = 100
VERDICT_STYLES = {"reproduced": "bold blue", "not reproduced": "bold yellow", "undecided": "dim"}


def experiment_tables(
    title: str,
    claims: list[dict[str, Any]],
    settings: list[tuple[str, dict[str, Any]]],
    axes: dict[str, str],
    main: str,
) -> RenderableType:
    """An experiment's result for the terminal: the claims with verdicts, then the best variants of each setting.

    Args:
        claims: judged.
        settings: title and, by axis, `ranking` and `winner` of each.
        axes: what is held equal in each ranking.
        main: the variant that stands for CoCoMix.
    """
    table = _wide_table(title)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("claim", overflow="fold")
    table.add_column("difference [95 %]", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for claim in claims:
        figures = "" if claim["difference"] is None else difference(claim, 3)
        verdict = Text(claim["verdict"], style=VERDICT_STYLES[claim["verdict"]])
        table.add_row(str(claim["id"]), Text(claim["statement"]), figures, verdict)
    note = (
        "Differences in test loss, nats a token, negative is better; claim 9: share of positions, positive is better."
    )
    rankings = [_ranking_table(name, by_axis, axes, main) for name, by_axis in settings]
    return Constrain(Group(table, Text(note, style="dim"), *rankings), EXPERIMENT_WIDTH)


def _ranking_table(title: str, rankings: dict[str, Any], axes: dict[str, str], main: str) -> Table:
    """The winner of each ranking, its difference, and where CoCoMix stands."""
    table = _wide_table(title)
    table.add_column("", overflow="fold")
    table.add_column("best variant", overflow="fold")
    table.add_column("difference [95 %]", no_wrap=True)
    table.add_column(f"{main} [95 %]", overflow="fold")
    for axis, entry in rankings.items():
        rows = {row["variant"]: row for row in entry["ranking"]}
        cells = [_ranking_cell(rows.get(variant)) for variant in (entry["winner"], main)]
        table.add_row(axes[axis], Text(entry["winner"] or "–"), *cells)
    return table


def _ranking_cell(row: dict[str, Any] | None) -> str:
    if row is None or row["verdict"] == "reference":
        return "–" if row is None else "0 (reference)"
    return row.get("range") or difference(row, 3)


def _wide_table(title: str) -> Table:
    return Table(
        title=Text(title), title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, expand=True
    )
