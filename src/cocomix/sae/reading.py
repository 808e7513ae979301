"""Reading of autoencoder files: JSON values and tensors are checked before they are used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_readable, parse_json


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CocomixError: the file is missing or damaged.
    """
    check_readable(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CocomixError(f"{path.parent} holds no autoencoder ({path.name} is missing)") from None
    except (OSError, ValueError) as error:
        raise CocomixError(f"{path} is damaged ({type(error).__name__}); copy the autoencoder again") from error
    if not isinstance(content, dict):
        raise CocomixError(f"{path} is damaged (it is not a JSON object); copy the autoencoder again")
    return content


def peek_json(path: Path) -> dict[str, Any]:
    """`read_json`, but an empty dictionary where the file is missing or damaged."""
    try:
        return read_json(path)
    except CocomixError:
        return {}


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        CocomixError: the file is missing or damaged.
    """
    check_readable(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CocomixError(f"{path.parent} holds no autoencoder ({path.name} is missing)") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CocomixError(f"{path} is damaged ({type(error).__name__}); copy the autoencoder again") from error


def check_tensors(
    tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: Any
) -> dict[str, torch.Tensor]:
    """The tensors named in `shapes`, at least in float32; no other may be there.

    Raises:
        CocomixError: a tensor is missing, unknown or of another shape.
    """
    if set(tensors) != set(shapes):
        wrong = sorted(set(tensors) ^ set(shapes))[0]
        state = "missing" if wrong in shapes else "unknown"
        raise CocomixError(f"{where}: the tensor {wrong!r} is {state}; expected are {', '.join(sorted(shapes))}")
    for name, shape in shapes.items():
        if not isinstance(tensors[name], torch.Tensor) or tuple(tensors[name].shape) != shape:
            actual = tuple(getattr(tensors[name], "shape", ()))
            raise CocomixError(f"{where}: {name} has shape {actual} where {shape} is needed; use an intact file")
    return {name: tensors[name].to(torch.promote_types(tensors[name].dtype, torch.float32)) for name in shapes}


def matrix_shape(tensors: Mapping[str, Any], name: str, where: Any) -> tuple[int, int]:
    """Shape of the matrix `name`."""
    matrix = tensors.get(name)
    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2:
        raise CocomixError(f"{where}: {name} is missing or not a matrix; use an intact file")
    return matrix.shape[0], matrix.shape[1]


def positive_int(value: Any, name: str, where: Any) -> int:
    """`value` from JSON, checked to be a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CocomixError(f"{where}: {name} is {value!r}, not a positive whole number; use an intact file")
    return value


def optional_text(value: Any, name: str, where: Any) -> str | None:
    """`value` from JSON, checked to be a string or None."""
    if value is not None and not isinstance(value, str):
        raise CocomixError(f"{where}: {name} is {value!r}, not a string; use an intact file")
    return value


def window_metadata(metadata: Mapping[str, Any], where: Any) -> tuple[bool | None, int | None]:
    """`prepend_bos` and `context_size` of the training windows, None where the JSON does not say."""
    prepend_bos, context_size = metadata.get("prepend_bos"), metadata.get("context_size")
    if prepend_bos is not None and not isinstance(prepend_bos, bool):
        raise CocomixError(f"{where}: prepend_bos is {prepend_bos!r}, not true or false; use an intact file")
    return prepend_bos, None if context_size is None else positive_int(context_size, "context_size", where)


def check_size(stated: Any, actual: int, name: str, where: Any) -> None:
    """Refuse a size stated in JSON that contradicts the weights; None is accepted."""
    if stated is not None and stated != actual:
        raise CocomixError(f"{where}: {name} is {stated} in its JSON and {actual} in its weights; copy it again")
