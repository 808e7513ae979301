"""No model is built that its weights cannot fill: a line of its configuration could ask for any amount of memory."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

TIMES = 4
"""Numbers and tensors that may be asked for, of those the weights hold: tied ones are made twice, and some are fused in
the file and not in the model, or the other way round."""
PACKED_TIMES = 64
"""The same for numbers of a quantised model, which are stored several in one."""
TABLES = 1 << 28
"""Numbers in tables, such as masks, that no weights hold."""


@contextmanager
def within_weights(folder: Path) -> Iterator[None]:
    """Within: a model that this thread builds is refused as soon as it outgrows the safetensors files in `folder`.

    Where there are none, as for a hub id, nothing is refused.

    Raises:
        ValueError: it has more numbers or tensors than those files can hold, by far.
        safetensors.SafetensorError: a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        yield
        return
    n_tensors, numbers, packed = 0, 0, False
    for path in files:
        with safe_open(path, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118
                n_tensors, part = n_tensors + 1, stored.get_slice(name)
                numbers += math.prod(part.get_shape())
                packed = packed or part.get_dtype() not in {"F64", "F32", "F16", "BF16"}
    most, here, asked = (PACKED_TIMES if packed else TIMES) * numbers, threading.get_ident(), [0, 0, 0]

    def parameter(_module: nn.Module, _name: str, made: Any) -> None:
        if made is None or made.device.type != "meta" or threading.get_ident() != here:
            return
        asked[0], asked[1] = asked[0] + made.numel(), asked[1] + 1
        if asked[0] > most:
            raise ValueError(f"its config.json asks for over {asked[0]:,} numbers, and its weights are {numbers:,}")
        if asked[1] > TIMES * n_tensors:
            raise ValueError(f"its config.json asks for over {asked[1]:,} tensors, and its weights are {n_tensors:,}")

    def table(_module: nn.Module, _name: str, made: Any) -> None:
        if made is not None and made.device.type == "meta" and threading.get_ident() == here:
            asked[2] += made.numel()
            if asked[2] > TABLES + most:
                raise ValueError(f"its config.json asks for tables of over {asked[2]:,} numbers")

    hooks = [register_module_parameter_registration_hook(parameter), register_module_buffer_registration_hook(table)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
