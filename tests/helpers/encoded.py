"""Commands in one fork whose standard output and error have another encoding than UTF-8."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from tests.helpers import forked

PROGRAM = """
import io, json, runpy, sys
encoding, commands = sys.argv[1], json.loads(open(sys.argv[2]).read())
for name in ("stdout", "stderr"):
    setattr(sys, name, io.TextIOWrapper(getattr(sys, name).buffer, encoding=encoding, line_buffering=True))
for command in commands:
    sys.argv = ["cocomix", *command]
    try:
        runpy.run_module("cocomix", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("\\nexit", code, flush=True)
"""


def cocomix_in(
    encoding: str, commands: Sequence[Sequence[str | Path]], *, cwd: Path, home: Path
) -> CompletedProcess[str]:
    """Run each of `commands` (arguments of `cocomix`); the output has a line `exit CODE` behind each.

    Args:
        home: a folder for the program.
    """
    program, arguments = home / "encoded_program.py", home / "encoded_commands.json"
    program.write_text(PROGRAM)
    arguments.write_text(json.dumps([[os.fspath(word) for word in command] for command in commands]))
    return forked.run([str(program), encoding, str(arguments)], cwd=cwd)


def exit_codes(done: CompletedProcess[str]) -> list[int]:
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]
