"""Programs run by several processes, as torchrun would launch them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.helpers.forked import Forked, wait_for_any


def torchrun(n: int, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `command` (a file, or `-m` and a module, and arguments) under the real torchrun, one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done


def free_port() -> str:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ranks(n: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each of `n` processes on one machine."""
    shared = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(n)]


def launch(n: int, *command: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `command` in `n` forked processes over gloo, one thread each; as under torchrun, one failure ends all.

    The outputs follow one another; the exit code is that of the first process to fail.
    """
    processes = [Forked(command, cwd=cwd, **rank) for rank in ranks(n)]
    code, running = 0, list(processes)
    while running:
        for process in wait_for_any(running, 300):
            running.remove(process)
            if process.returncode and not code:
                code = process.returncode
                for other in running:
                    other.kill()
    outputs, errors = zip(*(process.communicate() for process in processes), strict=True)
    done = subprocess.CompletedProcess([*command], code, "".join(outputs), "".join(errors))
    if check:
        assert code == 0, done.stderr
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
