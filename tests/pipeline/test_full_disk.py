"""A disk that is really full (a small tmpfs): one known error, and the last good state stays."""

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.cli import app as cli
from cocomix.data import write_shards
from cocomix.labels import LabelStore
from cocomix.train.checkpoint import load_checkpoint, save_checkpoint
from cocomix.utils.files import disk_full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Three mebibytes; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("mounting a small file system takes root on Linux")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_that_does_not_fit(small_disk: Path) -> None:
    save_checkpoint(small_disk, 1, {"x": torch.zeros(1000)}, {}, "key")
    with pytest.raises(OSError) as caught:
        save_checkpoint(small_disk, 2, {"x": torch.zeros(2_000_000)}, {}, "key")
    assert disk_full(caught.value) and caught.value.errno == errno.ENOSPC
    loaded = load_checkpoint(small_disk, "key", {"x": torch.zeros(1000)})
    assert loaded is not None and loaded.step == 1
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("tokens", [2_000_000, 1_560_000])
def test_shards_that_do_not_fit(small_disk: Path, tokens: int) -> None:
    with pytest.raises(OSError) as caught:
        write_shards(small_disk / "s", [np.ones(tokens, dtype=np.int64)] * 2, vocab_size=50, eos_id=0)
    assert disk_full(caught.value)
    assert not (small_disk / "s" / "manifest.json").exists()


def test_labels_that_do_not_fit_are_refused_before_the_first_one(small_disk: Path) -> None:
    """Also beside a first set that fits: all are allocated before anything is labelled."""
    about: dict = {"seq_len": 100, "n_labels": 4, "n_latents": 100, "lineage": {}, "shard_tokens": 50_000}
    LabelStore.create(small_disk / "fits", n_tokens=200_000, **about)
    with pytest.raises(OSError) as caught:
        LabelStore.create(small_disk / "full", n_tokens=300_000, **about)
    assert disk_full(caught.value)
    assert not (small_disk / "full" / "pending.json").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the disk is full; free some space and rerun the same command",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "run/x"), "run/x: permission denied; fix the path or its"),
        (OSError("odd"), "odd; fix the path or its permissions"),
    ],
)
def test_what_the_system_refuses_is_said_in_words(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and capsys.readouterr().err.startswith(f"cocomix: {said}")
