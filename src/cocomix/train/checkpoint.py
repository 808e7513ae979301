"""Checkpoints that a kill cannot spoil.

A checkpoint is a folder written under another name, flushed, then renamed; the newest two are kept, and a
damaged newest one falls back to the one before. Tensors load with `weights_only=True`: nothing is executed.
"""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from cocomix.errors import CocomixError

KEEP = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], curve: list[dict[str, Any]], key: str) -> None:
    """Write `folder/step-N` atomically and prune older ones.

    Args:
        state: nested tensors and plain numbers (model, optimiser, RNG).
        curve: JSON-able points measured so far.
        key: what the run was made with; a resume must present the same.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(temporary / "state.pt", lambda stream: torch.save(state, stream))
        meta = json.dumps({"step": step, "key": key, "curve": curve}).encode()
        _write(temporary / "meta.json", lambda stream: stream.write(meta))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    folder: Path, key: str, device: torch.device
) -> tuple[int, dict[str, Any], list[dict[str, Any]]] | None:
    """Newest sound checkpoint as (step, state, curve), or None if there is none.

    Raises:
        CocomixError: the checkpoint belongs to other settings.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            state = torch.load(path / "state.pt", map_location=device, weights_only=True)
            step, made_with, curve = meta["step"], meta["key"], meta["curve"]
        except Exception as error:  # torch raises several unrelated types for a damaged file
            warnings.warn(
                f"the checkpoint {path} is damaged ({type(error).__name__}) and was passed over", stacklevel=2
            )
            continue
        if made_with != key:
            raise CocomixError(
                f"the checkpoint {path} was made with other settings; delete {folder} or restore the settings"
            )
        return step, state, curve
    return None


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with path.open("wb") as stream:
        try:
            write(stream)
        except RuntimeError as error:  # torch's words for a file that could not grow
            if shutil.disk_usage(path.parent).free < 1 << 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        stream.flush()
        os.fsync(stream.fileno())
