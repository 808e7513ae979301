"""The record of where a stage was made leaves no trace of its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cocomix.utils import env as machine


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(
        ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_read_without_a_lock_on_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock taken to refresh the index outlives a kill, and git then refuses to commit."""
    source = tmp_path / "machine.py"
    source.write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    monkeypatch.setattr(machine, "__file__", str(source))
    source.touch()  # the index's time for it is old now, which `git status` would mend
    before = (tmp_path / ".git" / "index").stat().st_mtime_ns
    clean = machine.git_commit()
    assert clean is not None and len(clean) == 12
    source.write_text("2")
    assert machine.git_commit() == f"{clean}+changes"
    assert (tmp_path / ".git" / "index").stat().st_mtime_ns == before
