"""Fenced blocks of a documentation page: found, parsed, and run in order as a reader would.

A block that cannot run in a test stands behind `<!-- not run: REASON -->`; it must parse all the same.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from cocomix.cli.app import app

_BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
GROUP: Any = typer.main.get_command(app)


class Block(NamedTuple):
    """One fenced block."""

    kind: str
    """sh, python, …"""
    text: str
    line: int
    """of its first line, in the page"""
    reason: str | None
    """why it is not run"""


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    content = page.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(content))
    return [
        Block(one["kind"], one["text"], content[: one.start("text")].count("\n") + 1, one["reason"]) for one in found
    ]


def typed(script: str) -> Iterator[list[str]]:
    """The words of each command of a shell block; comments are left out, continued lines joined."""
    for line in re.sub(r"\\\n\s*", " ", script).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def after_cocomix(words: list[str]) -> list[str] | None:
    """What is typed after `cocomix`, alone or under a launcher's `-m`; None for other commands."""
    if "cocomix" not in words:
        return None
    at = words.index("cocomix")
    return words[at + 1 :] if at == 0 or words[at - 1] == "-m" else None


def parsed(words: list[str]) -> typer.Context:
    """A command line of ours, taken apart without being run: command, options and types must exist."""
    name, *arguments = words
    assert name in GROUP.commands, words
    return GROUP.commands[name].make_context(name, arguments)


def check(block: Block, page: Path) -> None:
    """A block that is not run can at least be read."""
    if block.kind == "python":
        compile(block.text, f"{page.name}:{block.line}", "exec")
    if block.kind == "sh":
        for words in typed(block.text):
            ours = after_cocomix(words)
            if ours is not None:
                parsed(ours)


class Reader:
    """Somebody who types a page's blocks, in one folder and one Python session.

    Commands of ours run in this process, for speed; any other in a shell.
    """

    def __init__(self, page: Path) -> None:
        self.page, self.names = page, {"__name__": "__main__"}

    def follow(self, block: Block) -> None:
        """Run one block; it must not fail."""
        if block.kind == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(self.page), "exec")
            exec(code, self.names)
        if block.kind == "sh":
            for words in typed(block.text):
                self._type(words)

    def _type(self, words: list[str]) -> None:
        if words[0] == "cocomix":
            code = GROUP.main(words[1:], prog_name="cocomix", standalone_mode=False)
            assert not code, f"{shlex.join(words)} ended with {code}"
        else:
            subprocess.run(words, check=True, timeout=60)
