"""What must not be read is refused by the command itself, with a fix, not by the parser of its arguments."""

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cocomix.cli.app import app
from cocomix.doctor import Finding


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "--run", "{folder}"),
        ("demo", "--config", "{folder}"),
        ("explore", "{folder}"),
        ("inspect", "hello", "--run", "{folder}"),
        ("steer-eval", "--run", "{folder}"),
        ("experiment", "{folder}"),
        ("perplexity", "{folder}", "{folder}"),
        ("doctor", "--run", "{folder}"),
    ],
)
def test_the_parser_does_not_refuse_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    real = os.access
    denied = lambda path, mode, **more: mode != os.R_OK and real(path, mode, **more)  # noqa: E731
    monkeypatch.setattr(os, "access", denied)
    done = CliRunner().invoke(app, [word.format(folder=tmp_path) for word in arguments])
    assert done.exit_code and "not readable" not in done.output and "Usage" not in done.output


def test_a_doctor_who_is_denied_does_not_ask_for_another_installation() -> None:
    denied: Any = PermissionError(13, "Permission denied", "run/config.yaml")
    finding = Finding.of("run", denied)
    assert finding.detail == "run/config.yaml: permission denied" and finding.fix == "fix the path or its permissions"
    assert "install" in Finding.of("torch", OSError("libgomp.so.1: cannot open shared object file")).fix
