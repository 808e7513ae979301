"""The command line as a user meets it: a process of its own, its output and its exit code."""

import subprocess
import sys
from pathlib import Path

from tests.helpers import forked


def cocomix(*arguments: str, cwd: Path, check: bool = True, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command in a fork of a process that has imported torch, or in a `fresh` one.

    `tests/cli/test_fresh_process.py` starts every command in a fresh process.
    """
    program = ["-m", "cocomix", *arguments]
    if fresh:
        done = subprocess.run([sys.executable, *program], cwd=cwd, capture_output=True, text=True, timeout=300)
    else:
        done = forked.run(program, cwd=cwd)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The process ended with exit code 2 and one clear sentence, no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    flat = " ".join(done.stderr.split())
    for word in words:
        assert word in flat, flat
