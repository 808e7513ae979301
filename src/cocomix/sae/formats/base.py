"""Base class of SAE file formats, hook point names, and downloads from the Hugging Face hub.

- `block_before` maps the hook point names of TransformerLens, Transformers and sparsify to the block whose output they
  are.
- A hub id is `owner/name` or `owner/name/folder/or/file.pt`. Only JSON, safetensors, the one `.pt` or `.npz` file it
  names, and the one `ae.pt` or `params.npz` of the folder it names are ever downloaded. A repository often holds one
  autoencoder per layer, so its JSON files are fetched first; they tell which folder is needed, and only that folder's
  weights follow.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError, reason

AFTER = (re.compile(r"blocks\.(\d+)\.hook_resid_post"), re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)"))
BEFORE = re.compile(r"blocks\.(\d+)\.hook_resid_pre")


def block_before(hook: str) -> int | None:
    """The block (0-based) whose output the hook point `hook` is; None if it is not a block's output.

    `blocks.5.hook_resid_post`, `transformer.h.5`, `model.layers.5` and `layers.5` are block 5's output;
    `blocks.5.hook_resid_pre` is block 4's.
    """
    for pattern in AFTER:
        if match := pattern.fullmatch(hook):
            return int(match[1])
    match = BEFORE.fullmatch(hook)
    return int(match[1]) - 1 if match and int(match[1]) else None


def check_hook(hook: str | None, layer: int, source: str) -> None:
    """Refuse an autoencoder whose hook point is not the output of block `layer` (0-based).

    Args:
        hook: None if the files do not say, which is accepted.
        source: name of the autoencoder in the message.

    Raises:
        CocomixError: the hook point is another one.
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


ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w. =-]+)*")


def is_hub_id(source: str) -> bool:
    """Whether `source` is a hub id: it neither exists as a local path nor looks like one."""
    first = Path(source).parts[0] if source else ""
    return bool(ID.fullmatch(source)) and not source.startswith(".") and ".." not in source and not Path(first).is_dir()


def fetch(source: str, choose: Callable[[Path], Path], weights_files: Sequence[str] = ()) -> Path:
    """Download an autoencoder from the hub and return its path in the local cache.

    Args:
        source: a hub id, see the module docstring.
        weights_files: names of weights that are fetched from the folder of the autoencoder beside safetensors.
        choose: returns the autoencoder's folder at or below a folder in which only the JSON files are present yet.

    Raises:
        CocomixError: the repository or file does not exist, or there is no network.
    """
    owner, name, *rest = source.split("/")
    repository, inside = f"{owner}/{name}", "/".join(rest)
    prefix = f"{inside}/" if inside else ""
    # The mirror of OpenAI's autoencoders has folders whose names end in .pt.
    patterns = [f"{prefix}*.json", *([inside] if inside.endswith((".pt", ".npz")) else [])]
    if inside:  # a format without JSON is recognised by its weights
        patterns += [f"{prefix}{name}" for name in weights_files]
        patterns += [f"{Path(inside).parent.as_posix()}/config.json"] if inside.endswith(".pt") else []
    root = _snapshot(repository, patterns, source)
    path = root / inside
    if path.is_file():
        return path
    if not path.is_dir():
        raise CocomixError(
            f"the hub repository {repository} holds no autoencoder in {inside!r}; correct sae.pretrained"
        )
    chosen = choose(path)
    below = chosen.relative_to(root).as_posix()
    prefix = "" if below == "." else f"{below}/"
    weights = [f"{prefix}{name}" for name in ("*.safetensors", *weights_files)]
    return _snapshot(repository, [f"{prefix}*.json", *weights], source) / below


def _snapshot(repository: str, patterns: list[str], source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # errors of the HTTP library come through, and which one that is depends on the version
        raise CocomixError(
            f"the SAE {source} is not a local path and cannot be downloaded from the hub ({reason(error)});"
            " correct sae.pretrained, or download it and give its folder"
        ) from error


class LoadedSae(NamedTuple):
    """A loaded autoencoder with the metadata in its files."""

    sae: TopKSAE
    format: str
    """name of the format"""
    hook: str | None
    """hook point as the files name it; None if they do not say"""
    model: str | None
    """the model it was trained on; None if they do not say"""
    k_from_files: bool
    """whether the files state K; otherwise it is the caller's"""
    prepend_bos: bool | None = None
    """whether its training windows began with a beginning-of-text token; None if they do not say"""
    context_size: int | None = None
    """length of its training windows; None if they do not say"""


class SaeFormat(ABC):
    """Base class of SAE file formats.

    Attributes:
        name: name in `--format`.
        title: name in error messages.
        metadata_file: name of the JSON file beside the weights, if the format has one.
        weights_file: name of the file with the weights, if the format has no JSON that tells what it is.
        detects_any_file: whether `detect` accepts any file; other formats are tried first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    metadata_file: ClassVar[str | None] = None
    weights_file: ClassVar[str | None] = None
    detects_any_file: ClassVar[bool] = False

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether `path` is an autoencoder of this format; its JSON must be present, its weights need not be yet."""

    @abstractmethod
    def load(self, path: Path, k: int) -> LoadedSae:
        """Load `path`, at least in float32; `k` is used where the files do not state K.

        Raises:
            CocomixError: a file is damaged, or `TopKSAE` cannot represent the autoencoder; the message names why.
        """

    def hook(self, path: Path) -> str | None:
        """Hook point of the autoencoder at `path`, from its name and JSON; None if they do not say."""
        return None

    def write(self, sae: TopKSAE, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Write `sae` to `folder`.

        Args:
            metadata: may hold `layer` (block whose output it reads, 0-based), `model`, and of its training windows
                `prepend_bos` and `context_size`, and `full_share` of its quality.

        Raises:
            CocomixError: the format cannot represent this autoencoder.
        """
        raise CocomixError(f"{self.title} cannot be written; choose another --format")


def with_weights(sae: TopKSAE, tensors: Mapping[str, torch.Tensor]) -> TopKSAE:
    """Load `tensors`, by the names of the state_dict, into `sae` and return it in their dtype."""
    sae = sae.to(tensors["encoder_weight"].dtype)
    sae.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()})
    return sae
