"""Where a report comes from."""

import shlex
import sys
from pathlib import Path
from typing import Any

from cocomix.utils.env import git_commit, machine


def provenance(**about: Any) -> dict[str, Any]:
    """Machine, commit and command line of this benchmark, for its report; ask before the work, which may take hours.

    Args:
        about: what is true of the machine here, e.g. `threads=1` where every process is given one.
    """
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"machine": machine() | about, "commit": git_commit(), "command": command}
