"""`python -m benchmarks.speed` as a user meets it."""

import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks.speed import own_process
from benchmarks.speed.bench import BUSY_WARNING, run_bench
from benchmarks.speed.groups import GROUPS
from benchmarks.speed.keys import KEYS
from benchmarks.speed.shapes import SHAPES
from cocomix.utils.errors import CocomixError
from tests.helpers import forked
from tests.helpers.command import cocomix, refused

ON_CPU = [name for name in GROUPS if name != "gpu"]


def bench(path: Path, **options: Any) -> str:
    """Run it in this process; returns what was printed."""
    given: dict[str, Any] = {"shape": "tiny", "repeats": 1, "only": [], "device": "cpu", "seed": 0} | options
    console = Console(file=io.StringIO(), width=120, record=True)
    run_bench(given.pop("shape"), path, console=console, **given)
    return " ".join(console.export_text().split())


def in_a_fork(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Stands for `subprocess.run` of a Python program."""
    return forked.run(command[1:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    pytest.importorskip("sae_lens")
    path, threads = tmp_path_factory.mktemp("bench") / "b.json", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patched:
            # In test_workloads.py the process is a fresh one.
            patched.setattr(own_process, "subprocess", SimpleNamespace(run=in_a_fork))
            printed = bench(path)
    finally:
        torch.set_num_threads(threads)
    return json.loads(path.read_text()), printed


@pytest.mark.slow
@pytest.mark.long
def test_everything_is_written(whole: tuple[dict[str, Any], str]) -> None:
    found, _ = whole
    for name in KEYS:
        assert found[name]["spread"][0] <= found[name]["value"] <= found[name]["spread"][1]
        assert found[name]["runs"] == [found[name]["value"]]
        assert "met" not in found[name], "the bars are not for this shape"
    assert set(found["slopes"]) == set(SHAPES["tiny"].growth.axes)
    assert set(found["peak_share"]) == {"step", "mixing", "labelling", "sae"} and set(found["matmul_peak"]) == {
        "fp32",
        "bf16",
    }
    assert set(found["waiting_share"]) >= {"gpt2 fp32", "cocomix fp32", "cocomix bf16"}
    assert set(found["labelling_bf16_vs_dense"]["agreement_with_fp32"]) == {"reference", "exact"}
    assert found["shape"]["name"] == "tiny" and found["machine"]["threads"] == 1 and found["machine"]["torch"]
    assert list(found["raw"]) == ON_CPU


@pytest.mark.slow
def test_everything_is_printed(whole: tuple[dict[str, Any], str]) -> None:
    found, printed = whole
    assert all(KEYS[name].title in printed and f"{found[name]['value']:.2f}" in printed for name in KEYS)
    assert all(GROUPS[name].title.capitalize() in printed for name in ON_CPU)


def test_only_some_of_it_from_the_command_line(tmp_path: Path) -> None:
    options = ("--shape", "tiny", "--repeats", "2", "--device", "cpu", "--only", "generate,peak", "--json", "b.json")
    done = forked.run(["-m", "benchmarks.speed", *options], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b.json").read_text())
    assert set(found["raw"]) == {"peak", "generate"} and set(found) & set(KEYS) == {"generate_vs_gpt2"}
    assert len(found["generate_vs_gpt2"]["runs"]) == 2
    assert "Generation" in done.stdout and "Labelling" not in done.stdout


@pytest.mark.parametrize("load", [0.0, 1.0])
def test_a_busy_machine_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    monkeypatch.setattr("benchmarks.speed.bench.busy_share", lambda: load)
    printed = bench(tmp_path / "b.json", only=["peak"])
    assert ("machine is busy" in printed) == (load > BUSY_WARNING)
    assert json.loads((tmp_path / "b.json").read_text())["busy"] == load


def test_what_is_measured_stays_when_the_next_group_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(GROUPS["generate"]), "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path / "b.json", only=["peak", "generate"])
    assert list(json.loads((tmp_path / "b.json").read_text())["raw"]) == ["peak"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "huge"}, ("huge", "69m")),
        ({"only": ["speed"]}, ("speed", "labelling")),
        ({"device": "tpu"}, ("tpu", "cuda")),
        ({"only": ["gpu"]}, ("gpu", "cpu")),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(CocomixError) as error:
        bench(tmp_path / "b.json", **options)
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "b.json").exists()


def test_a_folder_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    refused(forked.run(["-m", "benchmarks.speed", "--json", "nowhere/b.json"], cwd=tmp_path), "nowhere", "folder")


def test_the_command_of_the_package_says_where_it_went(tmp_path: Path) -> None:
    refused(cocomix("bench", "--shape", "tiny", cwd=tmp_path, check=False), "python -m benchmarks.speed")
