"""Autoencoders in the files of those who train them: one small class a format, in one registry."""

from pathlib import Path

from cocomix.sae.formats.base import LoadedSae, SaeFormat, block_before, check_hook, fetch, is_hub_id
from cocomix.sae.formats.cocomix import OwnFormat
from cocomix.sae.formats.openai import OpenAiFormat
from cocomix.sae.formats.saelens import SaeLensFormat
from cocomix.sae.formats.sparsify import SparsifyFormat
from cocomix.sae.reading import read_json
from cocomix.utils.errors import CocomixError

__all__ = ["FORMATS", "LoadedSae", "SaeFormat", "load_sae"]

FORMATS: dict[str, SaeFormat] = {
    one.name: one for one in (OwnFormat(), SaeLensFormat(), SparsifyFormat(), OpenAiFormat())
}
"""By name; a path is of the first format that knows it."""
JSON = ("cfg.json", "sae.json")
"""What lies beside the weights in one format or another."""


def load_sae(source: str | Path, *, layer: int, d_model: int, k: int) -> LoadedSae:
    """An autoencoder from a path of any format, or from the hub.

    Args:
        source: a file or folder, a folder with one autoencoder a hook point, or a hub id (see `formats.hub`).
        layer: the block (0-based) whose output it must read, as far as its files say.
        d_model: width of the hidden states it must read.
        k: concepts kept where the files have no K of their own.

    Raises:
        CocomixError: nothing there, damaged, another width or hook point, or something we cannot represent.
    """
    text = str(source)
    if Path(source).exists():
        path = _choose(Path(source), layer)
    elif is_hub_id(text):
        path = fetch(text, lambda folder: _choose(folder, layer))
    else:
        raise CocomixError(
            f"there is no SAE at {source}; give a folder of cocomix, SAELens or sparsify, one of OpenAI's .pt files,"
            " or a hub id"
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
    found = next((one for one in FORMATS.values() if one.detect(path)), None)
    if found is None:
        raise CocomixError(
            f"{path} is no autoencoder of a known format; give a folder of cocomix (sae.json), SAELens or sparsify"
            " (cfg.json), or one of OpenAI's .pt files"
        )
    return found


def _choose(path: Path, layer: int) -> Path:
    """`path`, or the one autoencoder below it that reads after block `layer`."""
    if any(one.detect(path) for one in FORMATS.values()):
        return path
    for name in JSON:
        if (path / name).is_file():
            read_json(path / name)  # a damaged one is said to be damaged
            _format(path)
    below = sorted({file.parent for name in JSON for file in path.rglob(name)})
    hooks = {folder: _hook(folder) for folder in below}
    right = [folder for folder, hook in hooks.items() if hook is not None and block_before(hook) == layer]
    if len(right) == 1:
        return right[0]
    there = ", ".join(str(folder.relative_to(path)) for folder in (right or below)[:6])
    if right:
        raise CocomixError(f"{path} holds several SAEs of block {layer} ({there}); name one of them in sae.pretrained")
    if below:
        raise CocomixError(
            f"{path} holds no SAE of block {layer}'s output, but others ({there}); set sae.layer or name one of them"
        )
    _format(path)
    return path


def _hook(folder: Path) -> str | None:
    return next((one.hook(folder) for one in FORMATS.values() if one.detect(folder)), None)
