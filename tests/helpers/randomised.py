"""Modules whose every weight matters."""

from typing import TypeVar

from torch import nn

Made = TypeVar("Made", bound=nn.Module)


def randomised(module: Made) -> Made:
    """In float64, with weights large enough that every one, and every gradient, matters."""
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    return module
