"""A student's training steps in a process of their own, for its peak memory.

On a CPU the figure is peak RSS (the kernel's VmHWM) minus the RSS when the libraries were loaded and the data
written, just before the model was built: so it holds weights, gradients, AdamW's state, activations, and whatever the
allocator kept, and not the interpreter and the libraries, which are everyone's. On a GPU it is
`torch.cuda.max_memory_allocated`. `forward_backward` is the peak when the first backward pass has ended, without
AdamW's state; `step` that after all steps.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.contestant import Setting
from benchmarks.speed.shapes import Shape
from cocomix.utils.errors import CocomixError

ROOT = Path(__file__).resolve().parents[2]
"""Working directory of the process: `-m benchmarks...` is found there, wherever this process runs."""
KEY = "cocomix-bench: "
"""Marks the line with the result; libraries may print others."""


def measure_alone(student: str, precision: str, setting: Setting, steps: int = 2) -> dict[str, Any]:
    """Run `steps` training steps of `student`, a key of `STUDENTS`, in a fresh process.

    Returns:
        `step` and `forward_backward`, bytes above `before`; `before` itself, bytes; `seconds` of each step.

    Raises:
        CocomixError: the process failed, for want of memory as a rule.
    """
    asked = {
        "shape": setting.shape.model_dump(mode="json"),
        "device": str(setting.device),
        "seed": setting.seed,
        "student": student,
        "precision": precision,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.own_process", json.dumps(asked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(KEY)]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CocomixError(
            f"{student} {precision} did not finish in a process of its own (exit code {done.returncode}: {last});"
            " close what else uses memory, or choose a smaller --shape"
        )
    return json.loads(lines[-1].removeprefix(KEY))


def _measure(asked: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.speed.students import Trainee, TrainingStep
    from benchmarks.speed.synthetic import StoredData

    torch.set_num_threads(asked["threads"])
    device = torch.device(asked["device"])
    setting = Setting(Shape.model_validate(asked["shape"]), None, device, asked["seed"])
    step = TrainingStep(Trainee(asked["student"], setting, StoredData(setting.shape, setting.seed)), asked["precision"])
    before = _now(device)
    peaks: dict[str, int] = {}
    seconds: list[float] = []

    def lap(name: str) -> None:
        if name == "forward_backward":
            setting.settle()
            peaks.setdefault(name, _peak(device) - before)

    step.prepare()
    for _ in range(asked["steps"]):
        started = time.perf_counter()
        step.run(lap)
        setting.settle()
        seconds.append(time.perf_counter() - started)
    return {"step": _peak(device) - before, **peaks, "before": before, "seconds": seconds}


def _now(device: torch.device) -> int:
    """Bytes held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    """The most bytes held so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    # Not getrusage: its maximum survives exec and would be that of the process that started this one.
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        raise CocomixError(
            f"this system ({os.uname().sysname}) does not tell a process's peak memory; leave out --only memory"
        ) from None


if __name__ == "__main__":
    print(KEY + json.dumps(_measure(json.loads(sys.argv[1]))))
