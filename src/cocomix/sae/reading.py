"""Careful reading of autoencoders from files: JSON and tensors are checked before they are used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_readable, parse_json


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a json file.

    Raises:
        CocomixError: missing or damaged.
    """
    check_readable(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CocomixError(f"{path.parent} holds no autoencoder ({path.name} is missing)") from None
    except (OSError, ValueError) as error:
        raise CocomixError(f"{path} is damaged ({type(error).__name__}); copy the autoencoder again") from error
    if not isinstance(content, dict):
        raise CocomixError(f"{path} is damaged (no mapping); copy the autoencoder again")
    return content


def peek_json(path: Path) -> dict[str, Any]:
    """`read_json`, empty where there is nothing to read."""
    try:
        return read_json(path)
    except CocomixError:
        return {}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CocomixError: missing or damaged.
    """
    check_readable(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CocomixError(f"{path.parent} holds no autoencoder ({path.name} is missing)") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CocomixError(f"{path} is damaged ({type(error).__name__}); copy the autoencoder again") from error


def shaped(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: Any) -> dict[str, torch.Tensor]:
    """The tensors `shapes` names, at least in float32; nothing else may be there.

    Raises:
        CocomixError: a missing or unknown tensor, or another shape.
    """
    if set(tensors) != set(shapes):
        wrong = sorted(set(tensors) ^ set(shapes))[0]
        state = "missing" if wrong in shapes else "unknown"
        raise CocomixError(f"{where}: the tensor {wrong!r} is {state}; expected are {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        if not isinstance(tensors[name], torch.Tensor) or tuple(tensors[name].shape) != shape:
            found = tuple(getattr(tensors[name], "shape", ()))
            raise CocomixError(f"{where}: {name} has shape {found} where {shape} is needed; use a sound file")
    return {name: tensors[name].to(torch.promote_types(tensors[name].dtype, torch.float32)) for name in shapes}


def sizes(tensors: Mapping[str, Any], name: str, where: Any) -> tuple[int, int]:
    """The two sizes of the matrix `name`."""
    found = tensors.get(name)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        raise CocomixError(f"{where}: {name} is missing or no matrix; use a sound file")
    return found.shape[0], found.shape[1]


def whole(value: Any, name: str, where: Any) -> int:
    """A positive whole number from json."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CocomixError(f"{where}: {name} is {value!r}, not a positive whole number; use a sound file")
    return value


def words(value: Any, name: str, where: Any) -> str | None:
    """A text from json, or nothing."""
    if value is not None and not isinstance(value, str):
        raise CocomixError(f"{where}: {name} is {value!r}, not a text; use a sound file")
    return value


def agrees(stated: Any, found: int, name: str, where: Any) -> None:
    """Refuse a size that json states and the weights contradict; json may leave it out."""
    if stated is not None and stated != found:
        raise CocomixError(f"{where}: {name} is {stated} by its json and {found} by its weights; copy it again")
