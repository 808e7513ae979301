"""Checkpoints that a kill cannot spoil, written by all processes and read by any number of them.

Every process writes its share of the tensors through torch.distributed.checkpoint, in the safetensors format: nothing
in a checkpoint can be executed. A folder is written under another name, flushed, then renamed; its `meta.json`, with
the size and checksum of every file, comes last. The newest two are kept, and a damaged newest one falls back to the
one before.
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
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cocomix.utils.console import is_main, rank, world_size
from cocomix.utils.distributed import gathered, on_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_sealed, sha256, write_sealed
from cocomix.utils.integrity import is_inside

KEEP = 2
META = "meta.json"


class Found(NamedTuple):
    """A checkpoint that was loaded."""

    step: int
    about: dict[str, Any]
    """what was saved beside the tensors"""


def save_checkpoint(folder: Path, step: int, tensors: dict[str, torch.Tensor], about: dict[str, Any], key: str) -> None:
    """Write `folder/step-N` atomically and prune older ones; all processes must call it.

    Args:
        tensors: by name; sharded ones (DTensor) are written in shares.
        about: JSON-able state beside them, the main process's counts.
        key: what the run is made with; a resume must present the same.

    Raises:
        OSError: the disk is full, in whichever process; older checkpoints are as they were.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        on_main(lambda: _emptied(temporary))
        _write_tensors(temporary, tensors)
        names = sorted(path.name for path in temporary.glob("*.safetensors"))
        entries = gathered({name: _entry(temporary / name) for name in names[rank() :: world_size()]})
        files = {name: entry for part in entries for name, entry in sorted(part.items())}
        meta = {"format": 2, "step": step, "key": key, "processes": world_size(), "files": files, "about": about}
        on_main(lambda: _publish(temporary, final, meta))
    except BaseException:
        if is_main():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def load_checkpoint(folder: Path, key: str, tensors: dict[str, torch.Tensor]) -> Found | None:
    """Fill `tensors` from the newest sound checkpoint; None if there is none. All processes must call it.

    The number of processes may differ from the one it was written with.

    Raises:
        CocomixError: the checkpoint belongs to other settings.
        PermissionError: it may not be read; it may well be sound, so it is not passed over.
    """
    for path in on_main(lambda: sorted(folder.glob("step-*"), reverse=True)):
        try:
            meta = on_main(lambda path=path: _meta(path))
            if meta["key"] != key:
                raise CocomixError(
                    f"the checkpoint {path} was made with other settings; delete {folder} or restore the settings"
                )
            _check_files(path, meta["files"])
            with _quiet():
                load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=world_size() == 1)
            return Found(meta["step"], meta["about"])
        except (CocomixError, PermissionError):
            raise
        except (Exception, CheckpointException) as error:  # many types mean a damaged file, one no Exception
            if is_main():
                warnings.warn(f"the checkpoint {path} is damaged ({_cause(error)}) and was passed over", stacklevel=2)
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
    """Within: PyTorch does not warn that a single process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _no_space(cause: BaseException) -> bool:
    return getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _publish(temporary: Path, final: Path, meta: dict[str, Any]) -> None:
    write_sealed(temporary / META, meta, durable=True)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    _flush_folder(final.parent)
    for old in sorted(final.parent.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # not every file system flushes folders
    finally:
        os.close(descriptor)


def _meta(path: Path) -> dict[str, Any]:
    meta = read_sealed(path / META)
    _ = meta["step"], meta["key"], meta["files"], meta["about"]
    return meta


def _check_files(path: Path, files: dict[str, dict[str, Any]]) -> None:
    """Every file is as it was written; each process looks at its share of them."""
    if not all(map(is_inside, files)):
        raise ValueError("it names a file outside its folder")
    wrong = [name for name in sorted(files)[rank() :: world_size()] if not _as_written(path / name, files[name])]
    wrong = [name for part in gathered(wrong) for name in part]
    if wrong:
        raise OSError(f"{wrong[0]} is missing or altered")


def _as_written(path: Path, entry: dict[str, Any]) -> bool:
    if not path.exists() or path.stat().st_size != entry["bytes"]:
        return False
    return sha256(path) == entry["sha256"]


def _cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
