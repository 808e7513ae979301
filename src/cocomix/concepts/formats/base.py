"""What every file format of autoencoders offers, and the careful reading they share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cocomix.concepts.sae import TopKSAE
from cocomix.errors import CocomixError
from cocomix.files import check_readable, parse_json


class LoadedSae(NamedTuple):
    """An autoencoder and what its files say about it."""

    sae: TopKSAE
    format: str
    """a key of `FORMATS`"""
    hook: str | None
    """where in the model it reads, in the file's own words; None where the file does not say"""
    model: str | None
    """the model it was trained on, likewise"""
    own_k: bool
    """whether K is the file's; else it is the caller's"""


class SaeFormat(ABC):
    """One layout of files.

    Attributes:
        name: as `--format` has it.
        title: as error messages have it.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether `path` is an autoencoder of this format; weights need not be there yet, its json must."""

    @abstractmethod
    def load(self, path: Path, k: int) -> LoadedSae:
        """Read `path`, at least in float32; `k` serves where the format has no K of its own.

        Raises:
            CocomixError: damaged files, or what we cannot represent, by name.
        """

    def hook(self, path: Path) -> str | None:
        """Where the autoencoder at `path` reads, as far as its name and json tell."""
        return None

    def write(self, sae: TopKSAE, folder: Path, about: Mapping[str, Any]) -> None:
        """Write `sae`; `about` may hold `layer` (block whose output it reads, 0-based) and `model`.

        Raises:
            CocomixError: the format cannot represent this autoencoder.
        """
        raise CocomixError(f"{self.title} cannot be written; choose another --format")


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


def filled(sae: TopKSAE, tensors: Mapping[str, torch.Tensor]) -> TopKSAE:
    """`sae` with its weights replaced, in their dtype; names are those of its state_dict."""
    sae = sae.to(tensors["encoder_weight"].dtype)
    sae.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()})
    return sae
