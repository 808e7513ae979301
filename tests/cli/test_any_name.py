"""Whatever a user names, however the terminal is encoded: shown as it is, never parsed, and no command ends by it."""

import ast
import io
import os
import shutil
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from cocomix.utils.console import UNPRINTABLE, Terminal
from tests.helpers.encoded import cocomix_in, exit_codes

NASTY = "r[/b][red] \x1b[31m\u202e'é" + os.fsdecode(b"\xff")
TITLE = 'title="A [/b] [red]x :smile: \\e[2J\\u2028"'
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_commands_take_any_run_name_and_title(tiny: Path, tmp_path: Path, encoding: str) -> None:
    run, out = tmp_path / NASTY, tmp_path / "out[red]"
    shutil.copytree(tiny / "runs" / "tiny", run)
    tmp_run = run.name
    commands = [
        ["report", "-r", tmp_run, TITLE],
        ["demo", "-r", tmp_run],
        ["evaluate", "-r", tmp_run],
        ["inspect", "the [b]road[/b] \x1b[1m", "-r", tmp_run],
        ["inspect", "the road", "-r", tmp_run, "--json"],
        ["name", "-r", tmp_run, "--tokens", "2000"],
        ["name", "-r", tmp_run, "--edit", "3=[/b] \x1b[1m name"],
        ["generate", "the [/i] \x1b[1m", "-r", tmp_run, "--max-new-tokens", "4"],
        ["export-sae", "-r", tmp_run, "-o", "sae[/b]"],
        ["push", "-r", tmp_run, "--student", "ntp", "--dry-run", "-o", out.name],
        ["doctor", "-r", tmp_run],
        ["train", "nobody[/b]\x1b[1m", "-r", tmp_run],
        ["corpus", "-r", "new[/b]", "corpus.source=folder", "corpus.options={path: 'no[/x]where'}"],
    ]
    done = cocomix_in(encoding, commands, cwd=tmp_path, home=tmp_path)
    codes, printed = exit_codes(done), done.stdout + done.stderr
    assert "Traceback" not in printed, printed
    assert codes[:10] == [0] * 10 and codes[11:] == [2, 2], printed
    assert not UNPRINTABLE.search(printed.replace("\ufffd", "")), ascii(printed)
    flat = "".join(printed.split())
    for shown in (
        "A[/b][red]x:smile:",
        "r[/b][red]\\x1b[31m",
        "out[red]",
        "nobody[/b]\\x1b[1m",
        "no[/x]where",
        "sae[/b]",
    ):
        assert shown in flat, (shown, printed)


def test_text_is_text_wherever_it_stands() -> None:
    stream = io.StringIO()
    terminal = Terminal(file=stream, width=60, force_terminal=True, color_system=None)
    table = Table(title="[/b]\x1b[1m")
    table.add_column("[red]\x07")
    table.add_row("[/x]\udcff")
    table.add_row(Text("\x9b1m[/y]", style="bold"))
    terminal.print(table, "[/z] :smile:", Text.assemble(("a\x1bb", "bold"), "\u202e"), "tab\tline\n")
    terminal.print_json('{"x": "\\u001b\\u007f é ±"}')
    printed = stream.getvalue()
    for shown in (r"[/b]\x1b[1m", r"[red]\x07", r"[/x]\udcff", r"\x9b1m[/y]", "[/z] :smile:", r"a\x1bb", r"\u202e"):
        assert shown in printed, (shown, printed)
    assert not UNPRINTABLE.search(printed) and r"\u00e9" in printed


def test_no_markup_and_no_other_console_is_in_the_source() -> None:
    """A style is `style=` or `Text`: a console that parses markup would parse what users name."""
    problems = []
    for file in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            markup = options.get("markup")
            if name == "Console" or name in {"from_markup", "from_ansi"}:
                problems.append(f"{place}: {name}")
            if markup is not None and not (isinstance(markup, ast.Constant) and markup.value is False):
                problems.append(f"{place}: markup")
            if name == "TextColumn" and markup is None:
                problems.append(f"{place}: a TextColumn parses markup unless told otherwise")
    assert not problems
