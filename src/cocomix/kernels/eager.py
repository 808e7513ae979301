"""Functions that a compiled model calls between its graphs."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch

Given = ParamSpec("Given")
Made = TypeVar("Made")


def outside_graphs(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """`function`, never traced by torch.compile: its loops, buffers and own backward pass are not for tracing."""
    disable: Any = torch.compiler.disable
    return cast(Callable[Given, Made], disable(function))
