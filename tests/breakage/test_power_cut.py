"""A power cut after "done" left empty records: the disk, without the kernel's cache, holds each finished stage."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.utils.integrity import forget_verified
from tests.helpers.launched_commands import prepare

SHORT = [f"{section}.steps=2" for section in ("teacher.train", "sae.train", "students_train")]
STAGES = ("corpus", "tokens", "teacher", "sae", "students/ntp/seed0")


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system takes root, and a loop device")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_what_is_done_survives_a_power_cut(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no ext4 here")
    image = tmp_path / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    made = tmp_path / "prepared"
    made.mkdir()
    prepare(made)
    recipe = made / "recipe.yaml"
    settings = yaml.safe_load(recipe.read_text())
    for section in (settings["teacher"]["train"], settings["sae"]["train"], settings["students_train"]):
        section["n_snapshots"] = 0
    recipe.write_text(yaml.safe_dump(settings))
    with mounted(image, tmp_path / "disk") as disk:
        for number, name in enumerate(STAGES):
            Run(disk / "run", load_config(recipe, SHORT)).run_stage(name)
            held = tmp_path / f"held-{number}.img"
            shutil.copyfile(image, held)
            with mounted(held, tmp_path / f"held-{number}") as after:
                stage = Run(after / "run", load_config(after / "run/config.yaml")).stages[name]
                forget_verified(after / "run")
                assert stage.check() and stage.outputs()
                stage.verify()
            held.unlink()
