"""A reading in the terminal; all that colour says is also said in words or bars, so a pipe loses nothing."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cocomix.analysis.inspect import Odds, PredictedConcept, Reading, TokenReading
from cocomix.analysis.naming import printable, visible

BARS = " ▁▂▃▄▅▆▇█"
COLOUR = (255, 170, 0)


def print_reading(reading: Reading, console: Console) -> None:
    """A row for each token; with a chosen concept, the text shaded by it and the odds without it."""
    if reading.concept is not None:
        title = f"concept {reading.concept}" + (f" ({reading.name})" if reading.name else "")
        console.print(Text(f"{title}, stronger is brighter:"), soft_wrap=True)
        console.print(Text.assemble(*(_shaded(token) for token in reading.tokens)), soft_wrap=True)
        console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("token", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    if reading.concept is None:
        table.add_column("next tokens", ratio=1)
        table.add_column("concepts, strength", ratio=2)
    else:
        table.add_column("without", justify="right", no_wrap=True)
        table.add_column(f"concept {reading.concept}", no_wrap=True)
        table.add_column("next tokens, with → without", ratio=1)
    for token in reading.tokens:
        told = [Text(_one(token.token)), Text(_number(token.loss))]
        if token.chosen is None:
            table.add_row(*told, _joined(map(_odds, token.next)), _joined(map(_concept, token.concepts)))
        else:
            table.add_row(*told, Text(_number(token.loss_without)), _bar(token.chosen), _joined(map(_odds, token.next)))
    console.print(table)
    console.print(Text(_legend(reading), style="dim"), soft_wrap=True)


def _joined(parts) -> Text:
    return Text("  ").join(list(parts))


def _one(token: str) -> str:
    """A token as it can stand in a cell, a leading space shown."""
    return ("·" if token.startswith(" ") and token.strip() else "") + visible(token)


def _odds(one: Odds) -> Text:
    after = "" if one.without is None else f"→{one.without:.0%}"
    return Text(f"{_one(one.token)} {one.probability:.0%}{after}")


def _concept(one: PredictedConcept) -> Text:
    name = str(one.concept) + (f" ({one.name})" if one.name else "")
    return Text(f"{name} {one.strength:.2f}{'✓' if one.agreed else ''}", style="green" if one.agreed else "")


def _bar(one: PredictedConcept) -> Text:
    return Text(f"{_level(one)} {one.strength:+.2f}{'*' if one.used else ''}{'✓' if one.agreed else ''}")


def _level(one: PredictedConcept) -> str:
    return BARS[round(max(0.0, min(1.0, one.strength)) * (len(BARS) - 1))]


def _shaded(token: TokenReading) -> Text:
    assert token.chosen is not None
    share = max(0.0, min(1.0, token.chosen.strength)) if token.chosen.used else 0.0
    red, green, blue = (round(part * share) for part in COLOUR)
    text = printable(token.token)
    if share == 0:
        return Text(text)
    return Text(text, style=f"{'black' if share > 0.5 else 'white'} on rgb({red},{green},{blue})")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _legend(reading: Reading) -> str:
    said = "loss: nats of the token; strength: logit over the position's largest magnitude"
    said += "" if reading.concept is None else "; *: mixed in"
    if any(token.labels is not None for token in reading.tokens):
        return said + "; ✓: the teacher's attribution agrees"
    return said + "; no teacher's labels to compare with"
