"""Whatever a user names, however the terminal is encoded: shown as it is, never parsed, and no command ends by it."""

import ast
import io
import os
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from cocomix.utils.console import UNPRINTABLE, Terminal
from tests.helpers.shell import Shell

NASTY = "r[/b][red] \x1b[31m\u202e'é"
NO_UTF_8 = os.fsdecode(b"run \xff")
TITLE = 'title="A [/b] [red]x :smile: \\e[2J\\u2028"'
ROOT = Path(__file__).parents[2]


def test_commands_take_any_run_name_and_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(tmp_path, monkeypatch)
    printed = ""
    commands = [
        (0, ["demo", "-r", NASTY, "-c", "my settings.yaml"]),
        (0, ["report", "-r", NASTY, TITLE]),
        (0, ["evaluate", "-r", NASTY]),
        (0, ["inspect", "the [b]road[/b] \x1b[1m", "-r", NASTY]),
        (0, ["inspect", "the road", "-r", NASTY, "--json"]),
        (0, ["name", "-r", NASTY, "--tokens", "500"]),
        (0, ["name", "-r", NASTY, "--edit", "3=[/b] name"]),
        (0, ["generate", "the [/i] \x1b[1m", "-r", NASTY, "--max-new-tokens", "4"]),
        (0, ["export-sae", "-r", NASTY, "-o", "sae[/b]"]),
        (0, ["push", "-r", NASTY, "--student", "ntp", "--dry-run", "-o", "out[red]"]),
        (2, ["train", "nobody[/b]\x1b[1m", "-r", NASTY]),
        (2, ["corpus", "-r", "new[/b]", "corpus.source=folder", "corpus.options={path: 'no[/x]where'}"]),
        (2, ["generate", "half \udc80", "-r", NASTY]),
        (2, ["corpus", "-r", NO_UTF_8]),
        (2, ["report", "-r", NO_UTF_8]),
    ]
    for number, (expected, words) in enumerate(commands):
        code, output, error = shell.run(words, "ascii" if number % 2 else "utf-8")
        assert code == expected, (words, output, error)
        printed += output + error
    assert not UNPRINTABLE.search(printed), ascii(printed)
    flat = "".join(printed.split())
    names = ("A[/b][red]x:smile:", "r[/b][red]\\x1b[31m", "out[red]", "nobody[/b]\\x1b[1m", "no[/x]where", "sae[/b]")
    for shown in names:
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
        source = file.read_text(encoding="utf-8")
        if not any(word in source for word in ("Console(", "markup", "from_ansi", "TextColumn")):
            continue
        for node in ast.walk(ast.parse(source)):
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
