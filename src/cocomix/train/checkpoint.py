"""Atomic checkpoints, written by all processes and loaded by any number of them.

Choices:
- Every process writes its share of the tensors with torch.distributed.checkpoint in the safetensors format, so nothing
  in a checkpoint can be executed.
- A folder is written under a temporary name, forced to the disk and renamed. Its `meta.json`, with the size and
  checksum of every file, is written last. A kill or a power cut at any moment leaves the older checkpoints intact.
- The newest two are kept. If the newest one is damaged, the one before it is loaded.
"""

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cocomix.utils.console import is_main, rank, world_size
from cocomix.utils.distributed import gathered, on_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import make_folder, move, read_sealed, sha256, sync, write_sealed
from cocomix.utils.integrity import is_inside

KEEP = 2
META = "meta.json"


class Checkpoint(NamedTuple):
    """A loaded checkpoint, without its tensors."""

    step: int
    state: dict[str, Any]
    """JSON state saved besides the tensors"""


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], key: str) -> None:
    """Write `folder/step-N` atomically and delete older ones; all processes must call it.

    Args:
        tensors: by name; of a sharded one (DTensor) each process writes its shard.
        state: JSON-able state besides the tensors; that of the main process is saved.
        key: checksum of the settings; `load_checkpoint` must be called with the same one.

    Raises:
        OSError: the disk is full, in any process; older checkpoints are unchanged.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        on_main(lambda: _create_empty(temporary))
        _write_tensors(temporary, tensors)
        names = sorted(path.name for path in temporary.glob("*.safetensors"))
        own = names[rank() :: world_size()]
        for name in own:
            sync(temporary / name)
        entries = gathered({name: _entry(temporary / name) for name in own})
        files = {name: entry for part in entries for name, entry in sorted(part.items())}
        meta = {"format": 2, "step": step, "key": key, "processes": world_size(), "files": files, "about": state}
        on_main(lambda: _publish(temporary, final, meta))
    except BaseException:
        if is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def save_alone(folder: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], key: str) -> None:
    """`save_checkpoint` by this process alone, which has all tensors whole; the others do not answer."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    _create_empty(temporary)
    # Not by torch.distributed.checkpoint, which would ask the others.
    path = temporary / "shard-00001-model-00001-of-00001.safetensors"
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    sync(path)
    files = {path.name: _entry(path)}
    meta = {"format": 2, "step": step, "key": key, "processes": 1, "files": files, "about": state}
    _publish(temporary, final, meta)


def load_checkpoint(folder: Path, key: str | None, tensors: dict[str, torch.Tensor]) -> Checkpoint | None:
    """Fill `tensors` from the newest intact checkpoint; None if there is none. All processes must call it.

    The number of processes may differ from that of the run that wrote it. Without a `key` any settings are accepted.

    Raises:
        CocomixError: the checkpoint belongs to other settings.
        PermissionError: the checkpoint cannot be read; it is not skipped because it may be intact.
    """
    for path in on_main(lambda: sorted(folder.glob("step-*"), reverse=True)):
        try:
            meta = on_main(lambda path=path: _meta(path))
            if key is not None and meta["key"] != key:
                raise CocomixError(
                    f"the checkpoint {path} was made with other settings; delete {folder} or restore the settings"
                )
            _check_files(path, meta["files"])
            with _quiet():
                load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world_size() == 1)
            return Checkpoint(meta["step"], meta["about"])
        except (CocomixError, PermissionError):
            raise
        except (
            Exception,
            CheckpointException,
        ) as error:  # CheckpointException is not an Exception
            if is_main():
                warnings.warn(f"the checkpoint {path} is damaged ({_cause(error)}) and was skipped", stacklevel=2)
    return None


def _write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        with _quiet():
            save(tensors, storage_writer=writer, no_dist=world_size() == 1)
    except CheckpointException as failed:
        causes = [cause for cause, _ in failed.failures.values()]
        if any(_no_space(cause) for cause in causes) or shutil.disk_usage(folder.parent).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from failed
        raise causes[0] from failed


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without PyTorch's warning that a single process saves without torch.distributed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _no_space(cause: BaseException) -> bool:
    return getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause)


def _create_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder.parent)
    folder.mkdir()


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _publish(temporary: Path, final: Path, meta: dict[str, Any]) -> None:
    write_sealed(temporary / META, meta, durable=True)
    replaced = final.with_name(f".{final.name}.replaced.tmp")
    if final.exists():  # a damaged one, or of a run that was stopped again at the step it resumed from
        os.replace(final, replaced)
    move(temporary, final)
    shutil.rmtree(replaced, ignore_errors=True)
    for old in sorted(final.parent.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _meta(path: Path) -> dict[str, Any]:
    meta = read_sealed(path / META)
    _ = meta["step"], meta["key"], meta["files"], meta["about"]
    return meta


def _check_files(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare every file with its size and checksum; each process checks its share of them."""
    if not all(map(is_inside, files)):
        raise ValueError("it names a file outside its folder")
    wrong = [name for name in sorted(files)[rank() :: world_size()] if not _is_unchanged(path / name, files[name])]
    wrong = [name for part in gathered(wrong) for name in part]
    if wrong:
        raise OSError(f"{wrong[0]} is missing or altered")


def _is_unchanged(path: Path, entry: dict[str, Any]) -> bool:
    if not path.exists() or path.stat().st_size != entry["bytes"]:
        return False
    return sha256(path) == entry["sha256"]


def _cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
