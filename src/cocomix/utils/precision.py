"""Numeric precision of forward and backward passes; weights stay float32 either way."""

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator


def fast_precision() -> Literal["fp32", "bf16"]:
    """bf16 where this machine multiplies in it (a GPU that supports it, or a CPU with bf16 instructions), else fp32."""
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return "fp32"
    return "bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


def _resolved(precision: str) -> str:
    return fast_precision() if precision == "auto" else precision


Precision = Annotated[Literal["auto", "fp32", "bf16"], AfterValidator(_resolved)]
"""A config's precision; "auto" is settled when the config is loaded, so a saved run says which it was."""


def autocast(device: Any, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 for "bf16", nothing for "fp32"."""
    import torch

    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
