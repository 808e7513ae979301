"""What every file format of autoencoders offers."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError, reason

# Which block's output a hook point is, in the words of the libraries that train autoencoders.

AFTER = (re.compile(r"blocks\.(\d+)\.hook_resid_post"), re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)"))
BEFORE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")


def block_before(hook: str) -> int | None:
    """The block (0-based) whose output `hook` is; None if it is something else.

    `blocks.5.hook_resid_post`, `transformer.h.5`, `model.layers.5` and `layers.5` are block 5's output;
    `blocks.5.hook_resid_pre` is block 4's.
    """
    for pattern in AFTER:
        if match := pattern.fullmatch(hook):
            return int(match[1])
    match = BEFORE.fullmatch(hook)
    return int(match[1]) - 1 if match and int(match[1]) else None


def check_hook(hook: str | None, layer: int, source: str) -> None:
    """Refuse an autoencoder that says it reads elsewhere than after block `layer` (0-based).

    Raises:
        CocomixError: it does; one that does not say is let through.
    """
    if hook is None:
        return
    block = block_before(hook)
    if block is None:
        raise CocomixError(
            f"the SAE {source} reads {hook!r}, not a residual stream after a block; use one of a block's output"
        )
    if block != layer:
        raise CocomixError(
            f"the SAE {source} reads {hook!r}, the output of block {block} (0-based), and sae.layer is {layer};"
            f" set sae.layer={block} or choose another SAE"
        )


# Autoencoders on the Hugging Face hub: `owner/name`, or `owner/name/folder/or/file.pt`.
#
# Only json, safetensors and the one `.pt` file named are ever downloaded. A repository often holds an autoencoder a
# layer, so its json files come first; from them the right folder is known, and only that folder's weights follow.

ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w. =-]+)*")


def is_hub_id(source: str) -> bool:
    """Whether `source` can only be meant for the hub: it is no path here, nor looks like one."""
    first = Path(source).parts[0] if source else ""
    return bool(ID.fullmatch(source)) and not source.startswith(".") and ".." not in source and not Path(first).is_dir()


def fetch(source: str, choose: Callable[[Path], Path]) -> Path:
    """Download what `source` names; returns its path in the hub's local cache.

    Args:
        source: a hub id, see the module.
        choose: the autoencoder's folder among those below the given one, of which only json is there yet.

    Raises:
        CocomixError: no such repository or file, or no network.
    """
    owner, name, *rest = source.split("/")
    repository, inside = f"{owner}/{name}", "/".join(rest)
    prefix = f"{inside}/" if inside else ""
    # The mirror of OpenAI's autoencoders has folders whose names end in .pt.
    wanted = [f"{prefix}*.json", *([inside] if inside.endswith(".pt") else [])]
    root = _snapshot(repository, wanted, source)
    found = root / inside
    if found.is_file():
        return found
    if not found.is_dir():
        raise CocomixError(
            f"the hub repository {repository} holds no autoencoder in {inside!r}; correct sae.pretrained"
        )
    chosen = choose(found)
    below = chosen.relative_to(root).as_posix()
    prefix = "" if below == "." else f"{below}/"
    return _snapshot(repository, [f"{prefix}*.json", f"{prefix}*.safetensors"], source) / below


def _snapshot(repository: str, patterns: list[str], source: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise CocomixError(
            f"the SAE {source} is no path here and cannot be had from the hub ({reason(error)});"
            " correct sae.pretrained, or download it and give its folder"
        ) from error


class LoadedSae(NamedTuple):
    """An autoencoder and what its files say about it."""

    sae: TopKSAE
    format: str
    """the format's name"""
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
        metadata_file: the JSON file beside the weights that a folder of this format has, if any.
        detects_any_file: whether `detect` accepts any file, so that other formats are asked first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metadata_file: ClassVar[str | None] = None
    detects_any_file: ClassVar[bool] = False

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
