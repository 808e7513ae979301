"""A run that nobody may write to, and programs that are held to it."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2


def obeying_modes(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python program that the modes of files hold for: root gives up the right to ignore them."""

    def give_up() -> None:
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
                libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    settings = {"HOME": str(cwd), "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env=os.environ | settings,
        preexec_fn=give_up,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A copy of a folder that everybody may read and nobody may write to."""
    home = Path(tempfile.mkdtemp(prefix="cocomix-read-only-"))
    copy = home / folder.name
    try:
        shutil.copytree(folder, copy)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield copy
    finally:
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(home)
