"""Measure a student's training steps in a separate process, for its peak memory.

On a CPU the figure is the peak RSS (the kernel's VmHWM) minus the RSS just before the model is built, when libraries
are loaded and the data is written. It covers weights, gradients, AdamW's state, activations and what the allocator
keeps, but not the interpreter and the libraries. On a GPU it is `torch.cuda.max_memory_allocated`. `forward_backward`
is the peak at the end of the first backward pass, without AdamW's state; `step` is the peak after all steps.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.shapes import Shape
from benchmarks.speed.workload import Setting
from cocomix.utils.errors import CocomixError

ROOT = Path(__file__).resolve().parents[2]
"""Working directory of the process: `benchmarks` is importable there, wherever this process runs."""
KEY = "cocomix-bench: "
"""Prefix of the line with the result; libraries may print other lines."""


def measure_in_own_process(student: str, precision: str, setting: Setting, steps: int = 2) -> dict[str, Any]:
    """Run `steps` training steps of `student`, a key of `STUDENTS` or `MIXINGS`, in a fresh process.

    Returns:
        `step` and `forward_backward`, bytes above `before`; `before` itself, bytes; `seconds` of each step.

    Raises:
        CocomixError: if the process failed, usually for lack of memory.
    """
    request = {
        "shape": setting.shape.model_dump(mode="json"),
        "device": str(setting.device),
        "seed": setting.seed,
        "student": student,
        "precision": precision,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.own_process", json.dumps(request)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(KEY)]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CocomixError(
            f"{student} {precision} did not finish in its own process (exit code {done.returncode}: {last});"
            " close what else uses memory, or choose a smaller --shape"
        )
    return json.loads(lines[-1].removeprefix(KEY))


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.speed.students import TrainingState, TrainingStep
    from benchmarks.speed.synthetic import StoredData

    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    setting = Setting(Shape.model_validate(request["shape"]), None, device, request["seed"])
    step = TrainingStep(
        TrainingState(request["student"], setting, StoredData(setting.shape, setting.seed)), request["precision"]
    )
    before = _now(device)
    peaks: dict[str, int] = {}
    seconds: list[float] = []

    def lap(name: str) -> None:
        if name == "forward_backward":
            setting.synchronize()
            peaks.setdefault(name, _peak(device) - before)

    step.prepare()
    for _ in range(request["steps"]):
        started = time.perf_counter()
        step.run(lap)
        setting.synchronize()
        seconds.append(time.perf_counter() - started)
    return {"step": _peak(device) - before, **peaks, "before": before, "seconds": seconds}


def _now(device: torch.device) -> int:
    """Return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    """Return the peak of bytes in use so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    # Not getrusage: its maximum survives exec, so it would be that of the process that started this one.
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        raise CocomixError(
            f"this system ({os.uname().sysname}) does not report a process's peak memory; leave out --only memory"
        ) from None


if __name__ == "__main__":
    print(KEY + json.dumps(_measure(json.loads(sys.argv[1]))))
