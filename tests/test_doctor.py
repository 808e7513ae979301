"""The doctor on broken machines and environments: each fault is found, with a fix, and nothing else is."""

import builtins
import errno
import shutil
import subprocess
from collections import namedtuple
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

from cocomix import doctor
from cocomix.cli.app import app
from cocomix.data import tokenize
from cocomix.doctor import CHECKS, Finding, State, examine

HERE = Path()


def found(name: str, folder: Path = HERE) -> dict[str, Finding]:
    """A check's findings by what they are about."""
    return {finding.subject: finding for finding in CHECKS[name](folder, None)}


def test_a_sound_machine_is_fine(tmp_path: Path) -> None:
    for name, subjects in (("machine", {"system", "Python", "torch"}), ("space", {"disk", "memory", "folder"})):
        findings = found(name, tmp_path / "not" / "made" / "yet")
        assert set(findings) == subjects
        assert all(one.state is State.FINE and one.detail and not one.fix for one in findings.values())
    assert torch.__version__ in found("machine")["torch"].detail
    assert found("torch")["torch"].state is State.FINE
    assert not any(tmp_path.iterdir())


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    core = [Requirement(text) for text in ("numpy>=999", "no-such-package-at-all>=1", "pydantic>=2")]
    extras = {"hub": [Requirement("no-such-package-at-all")], "dev": [Requirement("pytest")]}
    monkeypatch.setattr(doctor, "requirements", lambda: (core, extras))
    findings = found("packages")
    old, missing = findings["numpy"], findings["no-such-package-at-all"]
    assert old.state is missing.state is State.FIX
    assert old.fix == "pip install 'numpy>=999'" and metadata.version("numpy") in old.detail
    assert "not installed" in missing.detail
    assert findings["extra hub"].state is State.NOTE and "pip install 'cocomix[hub]'" in findings["extra hub"].fix
    assert findings["extra dev"].state is State.FINE


def test_packages_that_pip_finds_broken_are_notes_and_pip_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "other 1.0 has requirement numpy<1, but you have numpy 2.4.6."
    for code, output, notes in (
        (1, f"{broken}\ncocomix 0.1 requires nothing, which is not installed.\n", [broken]),
        (1, "", []),  # no pip: it says so on standard error
        (0, "No broken requirements found.\n", []),
    ):
        done = subprocess.CompletedProcess([], code, output, "No module named pip")
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        findings = [one for one in CHECKS["packages"](HERE, None) if one.subject == "pip check"]
        assert [one.detail for one in findings] == notes and {one.state for one in findings} <= {State.NOTE}


def test_requirements_are_those_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    about = Message()
    about["Provides-Extra"] = "hub"
    for text in ("numpy>=2", "tomli; python_version < '3'", "pyarrow>=18; extra == 'hub'"):
        about["Requires-Dist"] = text
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    core, extras = doctor.requirements()
    assert [str(one) for one in core] == ["numpy>=2"]
    assert {extra: [one.name for one in needed] for extra, needed in extras.items()} == {"hub": ["pyarrow"]}


def test_a_package_that_is_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Message:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", gone)
    (finding,) = [one for one in examine(HERE) if one.subject == "packages"]
    assert finding.state is State.FIX and "pip install -e ." in finding.fix


def test_no_torch_and_a_torch_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *what, **how: right(*what, **how) + 1)
    wrong = found("torch")["torch"]
    assert wrong.state is State.FIX and "wrong" in wrong.detail and "constraints.txt" in wrong.fix
    importing: Any = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "torch":
            raise ImportError("no torch here")
        return importing(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    findings = [one for one in examine(HERE) if one.subject in ("machine", "torch")]
    assert [one.state for one in findings] == [State.FIX] * 2 and "no torch here" in findings[0].detail


@pytest.mark.parametrize(("more", "state", "word"), [(0, State.FINE, ""), (1, State.NOTE, ""), (-1, State.NOTE, "OMP")])
def test_threads(more: int, state: State, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = torch.get_num_threads() + more
    monkeypatch.setattr(tokenize, "cores", lambda: cores)
    finding = found("torch")["threads"]
    assert finding.state is state and word in finding.fix and f"{cores} usable" in finding.detail


def test_little_disk_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 2**29))
    monkeypatch.setattr(doctor, "available_memory", lambda: 0.25)
    findings = found("space")
    disk, memory = findings["disk"], findings["memory"]
    assert disk.state is memory.state is State.FIX and disk.fix and memory.fix
    assert disk.detail == "0.5 GiB free" and memory.detail == "0.2 GiB free"
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    assert found("space")["memory"].state is State.NOTE


def test_memory_is_what_psutil_says() -> None:
    free = doctor.available_memory()
    assert free is not None and 0.5 < free / (psutil.virtual_memory().available / 2**30) < 2


def test_a_folder_that_cannot_be_written_or_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    finding = found("space", tmp_path / "file" / "runs")["folder"]
    assert finding.state is State.FIX and "Not a directory" in finding.detail and finding.fix

    def no_locks(lock: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "_acquire", no_locks)
    finding = found("space", tmp_path)["folder"]
    assert finding.state is State.FIX and "No locks available" in finding.detail and "locks" in finding.fix
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("bad", [False, True])
def test_the_command_ends_with_1_if_something_must_be_fixed(
    tmp_path: Path, bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(doctor, "available_memory", lambda: None)
    for name in set(CHECKS) - {"space", "torch"}:
        monkeypatch.delitem(CHECKS, name)
    done = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path / ("file/runs" if bad else "runs"))])
    assert done.exit_code == int(bad), done.output
    assert ("1 to fix." if bad else "Nothing to fix.") in done.output
