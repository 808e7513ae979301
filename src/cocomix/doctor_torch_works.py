"""Torch multiplies rightly, on the processor and on a GPU if there is one, with as many threads as there are cores."""

import os
from collections.abc import Iterator
from typing import Any

from cocomix.doctor_check import Check, Finding, State, Where

SIZE = 128


class TorchCheck(Check):
    """A product of whole numbers, which must come out to the last digit."""

    title = "torch"

    def look(self, where: Where) -> Iterator[Finding]:
        import torch

        if multiplies_rightly("cpu"):
            yield Finding(State.FINE, self.title, f"{torch.__version__}, a product comes out right")
        else:
            mend = "install torch again, in the version of constraints.txt"
            yield Finding(State.FIX, self.title, f"{torch.__version__}, a product comes out wrong", mend)


class ThreadsCheck(Check):
    """Threads of torch against the cores this process may use."""

    title = "threads"

    def look(self, where: Where) -> Iterator[Finding]:
        import torch

        threads, cores = torch.get_num_threads(), usable_cores()
        found = f"{threads} of torch on {cores} usable cores"
        if threads > cores:
            yield Finding(State.NOTE, self.title, found, f"export OMP_NUM_THREADS={cores}, more threads are slower")
        elif threads < cores:
            mend = "unset OMP_NUM_THREADS to use all of them" if "OMP_NUM_THREADS" in os.environ else ""
            yield Finding(State.NOTE, self.title, found, mend)
        else:
            yield Finding(State.FINE, self.title, found)


class CudaCheck(Check):
    """GPUs that torch can use; none is no fault."""

    title = "GPU"

    def look(self, where: Where) -> Iterator[Finding]:
        import torch

        if not torch.cuda.is_available():
            built = torch.version.cuda
            why = "torch was built without CUDA" if built is None else f"torch has CUDA {built} and sees no GPU"
            yield Finding(State.NOTE, self.title, f"none ({why}); everything runs on the processor")
            return
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found = f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
            right = multiplies_rightly(f"cuda:{number}")
            mend = "" if right else "match the driver with the CUDA version of torch, or set CUDA_VISIBLE_DEVICES="
            yield Finding(State.FINE if right else State.FIX, f"{self.title} {number}", found, mend)


def multiplies_rightly(device: str) -> bool:
    """Whether a product of whole numbers, small enough for any precision, is the one that Python finds."""
    import torch

    left = [[(3 * row + column) % 5 for column in range(SIZE)] for row in range(8)]
    right = [[(row + 2 * column) % 3 for column in range(8)] for row in range(SIZE)]
    expected = [[sum(a * right[at][column] for at, a in enumerate(row)) for column in range(8)] for row in left]
    found: Any = torch.tensor(left, device=device).float() @ torch.tensor(right, device=device).float()
    return found.long().tolist() == expected


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
