"""File formats of the libraries that train autoencoders: one class per format, in the registry `FORMATS`.

`load_sae` reads a path of any format, or downloads from the hub, and checks width and hook point.
"""

from pathlib import Path

from cocomix.sae.formats.base import LoadedSae, SaeFormat, block_before, check_hook, fetch, is_hub_id
from cocomix.sae.formats.cocomix import CocomixFormat
from cocomix.sae.formats.dictionary_learning import DictionaryLearningFormat
from cocomix.sae.formats.gemma_scope import GemmaScopeFormat
from cocomix.sae.formats.openai import OpenAiFormat
from cocomix.sae.formats.saelens import SaeLensFormat
from cocomix.sae.formats.sparsify import SparsifyFormat
from cocomix.sae.reading import read_json
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry

__all__ = ["FORMATS", "LoadedSae", "SaeFormat", "load_sae", "register_format"]

FORMATS: Registry[type[SaeFormat]] = Registry(
    "SAE format",
    [CocomixFormat, SaeLensFormat, SparsifyFormat, DictionaryLearningFormat, GemmaScopeFormat, OpenAiFormat],
)
"""Formats by name; a path has the first format that detects it."""


def register_format(cls: type[SaeFormat]) -> type[SaeFormat]:
    """Register an SAE format under its `name`; usable as a decorator."""
    return FORMATS.register(cls)


def format_of(path: Path) -> SaeFormat | None:
    """The format of the autoencoder at `path`, or None; a format that detects any file is tried last."""
    formats = sorted(FORMATS.values(), key=lambda cls: cls.detects_any_file)
    return next((cls() for cls in formats if cls().detect(path)), None)


def load_sae(source: str | Path, *, layer: int, d_model: int, k: int) -> LoadedSae:
    """Load an autoencoder from a path of any format, or from the hub.

    Args:
        source: a file or folder, a folder with one autoencoder per hook point, or a hub id (see `fetch`).
        layer: the block (0-based) whose output it must read, if its files say what it reads.
        d_model: width of the hidden states it must read.
        k: concepts kept where the files do not state K.

    Raises:
        CocomixError: it is missing or damaged, has another width or hook point, or `TopKSAE` cannot represent it.
    """
    text = str(source)
    if Path(source).exists():
        path = _choose(Path(source), layer)
    elif is_hub_id(text):
        weights = [cls.weights_file for cls in FORMATS.values() if cls.weights_file is not None]
        path = fetch(text, lambda folder: _choose(folder, layer), weights)
    else:
        raise CocomixError(
            f"there is no SAE at {source}; give a folder or file of one of the formats {FORMATS.names}, or a hub id"
        )
    loaded = _format(path).load(path, k)
    check_hook(loaded.hook, layer, text)
    if loaded.sae.d_model != d_model:
        raise CocomixError(
            f"the SAE {source} reads hidden states {loaded.sae.d_model} wide and the concept model's are {d_model}"
            " wide; use an SAE trained on this model"
        )
    return loaded


def _format(path: Path) -> SaeFormat:
    sae_format = format_of(path)
    if sae_format is None:
        raise CocomixError(
            f"{path} is not an autoencoder of a known format; give a folder of cocomix (sae.json), SAELens or sparsify"
            " (cfg.json), dictionary_learning (ae.pt) or Gemma Scope (params.npz), or one of OpenAI's .pt files"
        )
    return sae_format


def _choose(path: Path, layer: int) -> Path:
    """`path`, or the only autoencoder below it that reads the output of block `layer`."""
    if format_of(path) is not None:
        return path
    metadata_files = sorted({cls.metadata_file for cls in FORMATS.values() if cls.metadata_file is not None})
    for name in metadata_files:
        if (path / name).is_file():
            read_json(path / name)  # raises an error that says so if the file is damaged
            _format(path)
    weights_files = {cls.weights_file for cls in FORMATS.values() if cls.weights_file is not None}
    # dictionary_learning's JSON has a name that others use, too, so it counts only where it is one of an autoencoder.
    marks = [*metadata_files, *weights_files, "config.json"]
    below = sorted({file.parent for name in marks for file in path.rglob(name) if format_of(file.parent) is not None})
    hooks = {folder: _hook(folder) for folder in below}
    matches = [folder for folder, hook in hooks.items() if hook is not None and block_before(hook) == layer]
    if len(matches) == 1:
        return matches[0]
    shown = ", ".join(str(folder.relative_to(path)) for folder in (matches or below)[:6])
    if matches:
        raise CocomixError(f"{path} holds several SAEs of block {layer} ({shown}); name one of them in sae.pretrained")
    if below:
        raise CocomixError(
            f"{path} holds no SAE of block {layer}'s output, but others ({shown}); set sae.layer or name one of them"
        )
    _format(path)
    return path


def _hook(folder: Path) -> str | None:
    sae_format = format_of(folder)
    return None if sae_format is None else sae_format.hook(folder)
