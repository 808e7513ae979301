"""What every file format of autoencoders offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError


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


def filled(sae: TopKSAE, tensors: Mapping[str, torch.Tensor]) -> TopKSAE:
    """`sae` with its weights replaced, in their dtype; names are those of its state_dict."""
    sae = sae.to(tensors["encoder_weight"].dtype)
    sae.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()})
    return sae
