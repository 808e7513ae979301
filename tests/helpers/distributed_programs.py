"""Programs run by several processes, as a user would launch them."""

import os
import subprocess
import sys
from pathlib import Path


def torchrun(n: int, *command: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `command` (a file, or `-m` and a module, and arguments) in `n` processes over gloo, one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def program(folder: Path, body: str) -> str:
    """A file that runs `body` in each process of a launch; there `home` is `folder`."""
    path = folder / "program.py"
    path.write_text(
        "from pathlib import Path\n"
        "import torch\n"
        "from cocomix.utils.distributed import distributed_session, is_main, rank, world_size\n"
        f"home = Path({str(folder)!r})\n"
        "with distributed_session():\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())
    )
    return str(path)
