"""Where a report comes from."""

import shlex
import sys
from pathlib import Path
from typing import Any

from cocomix.utils.env import git_commit, machine

ROOT = Path(__file__).resolve().parents[1]


def provenance(**about: Any) -> dict[str, Any]:
    """Machine, commit and command line of this benchmark, for its report; ask before the work, which may take hours.

    Args:
        about: what is true of the machine here, e.g. `threads=1` where every process is given one.
    """
    program = Path(sys.argv[0]).resolve().with_suffix("").relative_to(ROOT).as_posix().replace("/", ".")
    command = shlex.join(["python", "-m", program.removesuffix(".__main__"), *sys.argv[1:]])
    return {"machine": machine() | about, "commit": git_commit(), "command": command}
