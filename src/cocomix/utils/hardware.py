"""What the hardware could do and what it uses: peak operations a second, memory.

Model FLOPs utilisation (MFU) is a model's counted operations over what the device could have done in that time.
A peak from a data sheet makes it comparable between runs; where there is none, the best of some large matrix
products stands in, which flatters: 100 % is then what this machine was seen to reach, not what it was sold as.
"""

import resource
import sys
import time
from functools import lru_cache

import torch

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
"""How long a peak is measured."""


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
    where = torch.device(device)
    size = 8192 if where.type == "cuda" else 1024
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.full((size, size), 0.5, dtype=kind, device=where)  # no random numbers: the run's are its own
    right = torch.full((size, size), 0.25, dtype=kind, device=where)
    best, until = float("inf"), time.perf_counter() + SECONDS
    with torch.no_grad():
        torch.mm(left, right)
        while True:
            _wait(where)
            started = time.perf_counter()
            torch.mm(left, right)
            _wait(where)
            ended = time.perf_counter()
            best = min(best, ended - started)
            if ended > until:
                return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_used(device: torch.device | str = "cpu") -> int:
    """Peak memory so far, bytes: tensors on a GPU since its statistics began, or this process's resident set."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
