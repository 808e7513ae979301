"""The doctor on broken situations: each is found, with a mend, and nothing else is."""

import builtins
import errno
import fcntl
import shutil
import sys
from collections import namedtuple
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

from cocomix import doctor
from cocomix import doctor as checks
from cocomix import doctor as libraries
from cocomix import doctor as system
from cocomix import doctor as torch_works
from cocomix.cli.app import app
from cocomix.doctor import CHECKS, Check, Finding, State, Where, examine

HERE = Where(Path())


def look(check: type[Check], where: Where = HERE) -> list[Finding]:
    return list(check().look(where))


def test_what_is_fine_is_said_to_be(tmp_path: Path) -> None:
    for check in (checks.PythonCheck, checks.TorchCheck, checks.WriteCheck, checks.DiskCheck):
        (one,) = look(check, Where(tmp_path / "not" / "made" / "yet"))
        assert one.state is State.FINE and one.found and not one.mend
    assert not any((tmp_path).iterdir())


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "OLDEST_PYTHON", (sys.version_info[0], sys.version_info[1] + 1))
    (one,) = look(checks.PythonCheck)
    assert one.state is State.FIX and f"Python 3.{sys.version_info[1] + 1} or newer" in one.mend


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    core = [Requirement(text) for text in ("numpy>=999", "no-such-package-at-all>=1", "pydantic>=2")]
    extras = {"hub": [Requirement("no-such-package-at-all")], "dev": [Requirement("pytest")]}
    monkeypatch.setattr(libraries, "wanted", lambda: libraries.Wanted(core, extras))
    old, missing = look(checks.RequirementsCheck)
    assert old.state is missing.state is State.FIX
    assert old.mend == "pip install 'numpy>=999'" and metadata.version("numpy") in old.found
    assert "not installed" in missing.found
    hub, dev = look(checks.ExtrasCheck)
    assert hub.state is State.NOTE and "pip install 'cocomix[hub]'" in hub.mend and "Hugging Face" in hub.found
    assert dev.state is State.FINE


def test_the_source_tree_and_an_installed_package_ask_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    project = libraries.wanted()
    about = Message()
    for extra, needed in {"": project.core, **project.extras}.items():
        if extra:
            about["Provides-Extra"] = extra
        for one in needed:
            about["Requires-Dist"] = f'{one}; extra == "{extra}"' if extra else str(one)
    monkeypatch.setattr(libraries, "_project", lambda path: None)
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    installed = libraries.wanted()
    assert [str(one) for one in installed.core] == [str(one) for one in project.core]
    assert {name: {one.name for one in needed} for name, needed in installed.extras.items()} == {
        name: {one.name for one in needed} for name, needed in project.extras.items()
    }
    assert set(project.extras) == set(libraries.PURPOSE)


def test_a_package_that_is_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Message:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries, "_project", lambda path: None)
    monkeypatch.setattr(metadata, "metadata", gone)
    monkeypatch.setattr(checks, "CHECKS", CHECKS)
    found = [one for one in examine(Where(Path())) if one.what in ("packages", "extras")]
    assert [one.state for one in found] == [State.FIX, State.FIX] and "pip install -e ." in found[0].mend


def test_no_torch_and_a_torch_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *what, **how: right(*what, **how) + 1)
    (one,) = look(checks.TorchCheck)
    assert one.state is State.FIX and "wrong" in one.found and "constraints.txt" in one.mend
    importing: Any = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "torch":
            raise ImportError("no torch here")
        return importing(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    found = [one for one in examine(HERE) if one.what in ("torch", "threads", "GPU")]
    assert [one.state for one in found] == [State.FIX] * 3 and "no torch here" in found[0].found


@pytest.mark.parametrize(("more", "state", "word"), [(0, State.FINE, ""), (1, State.NOTE, ""), (-1, State.NOTE, "OMP")])
def test_threads(more: int, state: State, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = torch.get_num_threads() + more
    monkeypatch.setattr(torch_works, "usable_cores", lambda: cores)
    (one,) = look(checks.ThreadsCheck)
    assert one.state is state and word in one.mend and f"{cores} usable" in one.found


def test_little_disk_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 2**29))
    monkeypatch.setattr(system, "available_memory", lambda: 0.25)
    disk, memory = look(checks.DiskCheck) + look(checks.MemoryCheck)
    assert disk.state is memory.state is State.FIX
    assert disk.found == "0.5 GiB free" and memory.found == "0.2 GiB free"
    monkeypatch.setattr(system, "available_memory", lambda: None)
    assert look(checks.MemoryCheck)[0].state is State.NOTE


def test_memory_is_what_psutil_says() -> None:
    found = system.available_memory()
    assert found is not None and 0.5 < found / (psutil.virtual_memory().available / 2**30) < 2


def test_a_folder_that_cannot_be_written_or_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (one,) = look(checks.WriteCheck, Where(tmp_path / "file" / "runs"))
    assert one.state is State.FIX and "Not a directory" in one.found and one.mend

    def no_locks(stream: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (one,) = look(checks.WriteCheck, Where(tmp_path))
    assert one.state is State.FIX and "No locks available" in one.found and "locks" in one.mend


@pytest.mark.parametrize("bad", [False, True])
def test_the_command_ends_with_1_if_something_must_be_mended(tmp_path: Path, bad: bool) -> None:
    (tmp_path / "file").write_text("")
    before = list(CHECKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor.check, "CHECKS", [checks.WriteCheck, checks.CudaCheck])
        done = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path / ("file/runs" if bad else "runs"))])
    assert done.exit_code == int(bad), done.output
    assert ("1 to be mended." if bad else "Nothing must be mended.") in done.output
    assert before == CHECKS
