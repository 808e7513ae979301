"""Autoencoders on the Hugging Face hub: `owner/name`, or `owner/name/folder/or/file.pt`.

Only json, safetensors and the one `.pt` file named are ever downloaded. A repository often holds an autoencoder a
layer, so its json files come first; from them the right folder is known, and only that folder's weights follow.
"""

import re
from collections.abc import Callable
from pathlib import Path

from cocomix.utils.errors import CocomixError, reason

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
