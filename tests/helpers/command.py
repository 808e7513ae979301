"""The command line as a user meets it: a fresh process, its output and its exit code."""

import subprocess
import sys
from pathlib import Path


def cocomix(*arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "cocomix", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )
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
