"""The machine and what it can do: processor, versions, commit, peak FLOPs, memory used, numeric precision.

Model FLOPs utilisation (MFU) is a model's counted operations over what the device could have done in that time. A peak
from a data sheet makes it comparable between runs; without one, the best rate of some large matrix products stands in,
which flatters: 100 % is then the best this machine reached, not its specification.
"""

import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
from pydantic import AfterValidator

from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError


def machine() -> dict[str, Any]:
    """The machine as records keep it: processor, memory, versions."""
    chosen = device()
    names = {"cuda": torch.cuda.get_device_name, "mps": lambda: f"mps ({_cpu_name()})", "cpu": lambda: "cpu"}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": names[chosen.type](),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_commit() -> str | None:
    """Commit of the source tree this package runs from, with `+changes` if it was edited; None outside one."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        # Without the option, a killed `git status` leaves a lock on the index that stops the user's next git command.
        status = ["git", "--no-optional-locks", "-C", folder, "status", "--porcelain", "--untracked-files=no"]
        dirty = subprocess.run(status, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if dirty else "")


DENSE_BF16: dict[str, float] = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362.05e12,
    "RTX 4090": 165.2e12,
}
"""Dense bf16 tensor-core peaks by name, operations a second, from NVIDIA's data sheets (halved where those count
structured sparsity); the first name that occurs in the device's is taken. RTX 4090: with fp32 accumulation, from the
Ada architecture paper. The L40S's is often quoted as 366 at boost clock and as half of it; this is its data sheet's."""

SECONDS = 0.3
"""Duration of measuring a peak."""


def peak_flops(device: torch.device | str, precision: str) -> float:
    """Operations a second `device` can do in matrix products, two a multiply-accumulate.

    Args:
        precision: "bf16" (from the table, where the device is in it) or "fp32" (always measured: on GPUs it depends
            on whether TF32 is allowed).
    """
    device = torch.device(device)
    if precision == "bf16" and device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        listed = next((peak for known, peak in DENSE_BF16.items() if known.lower() in name), None)
        if listed is not None and "laptop" not in name:
            return listed
    return measured_flops(str(device), precision)


@lru_cache
def measured_flops(device: str, precision: str) -> float:
    """The best rate of some square matrix products, operations a second; measured once a process and device."""
    target = torch.device(device)
    size = 8192 if target.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.full(
        (size, size), 0.5, dtype=dtype, device=target
    )  # no random numbers: the run's generator stays as it is
    right = torch.full((size, size), 0.25, dtype=dtype, device=target)
    best, until = float("inf"), time.perf_counter() + SECONDS
    with torch.no_grad():
        torch.mm(left, right)
        while True:
            _wait(target)
            started = time.perf_counter()
            torch.mm(left, right)
            _wait(target)
            ended = time.perf_counter()
            best = min(best, ended - started)
            if ended > until:
                return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_used(device: torch.device | str = "cpu") -> int:
    """Peak memory so far, bytes: tensors on a GPU since its statistics began, or this process's resident set."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":  # it keeps no peak
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA that leave no bf16 instructions."""


def fast_precision() -> Literal["fp32", "bf16"]:
    """bf16 where this machine multiplies in it (a GPU that supports it, or a CPU with bf16 instructions), else fp32.

    fp32 on an Apple GPU: only some of them multiply in bf16, and torch does not say which. fp32, too, where
    ONEDNN_MAX_CPU_ISA keeps torch from these instructions.
    """
    chosen = device().type
    if chosen == "mps":
        return "fp32"
    if chosen == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BF16:
        return "fp32"
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "fp32"
    return "bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


PRECISIONS = ("fp32", "bf16", "auto")


def typed_precision(name: str) -> str:
    """`fp32` or `bf16` as `name` says; `auto` is the fast one of this machine.

    Raises:
        CocomixError: there is no such precision.
    """
    if name not in PRECISIONS:
        raise CocomixError(f"there is no precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    return _resolved(name)


def _resolved(precision: str) -> str:
    return fast_precision() if precision == "auto" else precision


def as_float64(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64, on its device or, if that has no float64 (an Apple GPU), on the CPU."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


Precision = Annotated[Literal["auto", "fp32", "bf16"], AfterValidator(_resolved)]
"""A config's precision; "auto" is resolved when the config is loaded, so a saved run records the actual one."""


def autocast(device: Any, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 for "bf16", nothing for "fp32"."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
