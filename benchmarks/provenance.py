"""Where a benchmark report comes from: machine, commit and command line."""

import shlex
import sys
from typing import Any

from cocomix.utils.env import git_commit, machine


def provenance(**machine_facts: Any) -> dict[str, Any]:
    """Return machine, commit and command line of the running benchmark.

    Call it before the work starts: a benchmark can run for hours, and the commit may change meanwhile.

    Args:
        machine_facts: extra or corrected facts about the machine, e.g. `threads=1` if every process gets one thread.
    """
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else sys.argv[:1]
    command = shlex.join(["python", *program, *sys.argv[1:]])
    return {"machine": machine() | machine_facts, "commit": git_commit(), "command": command}
