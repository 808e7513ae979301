"""`cocomix bench` as a user meets it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cocomix.bench.groups import GROUPS
from cocomix.bench.keys import KEYS
from cocomix.bench.shapes import SHAPES
from command import cocomix, refused


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    pytest.importorskip("sae_lens")
    home = tmp_path_factory.mktemp("bench")
    done = cocomix("bench", "--shape", "tiny", "--repeats", "1", "--device", "cpu", "--json", "b.json", cwd=home)
    return json.loads((home / "b.json").read_text()), " ".join(done.stdout.split())


@pytest.mark.slow
def test_everything_is_written(whole: tuple[dict[str, Any], str]) -> None:
    found, _ = whole
    for name in KEYS:
        assert found[name]["spread"][0] <= found[name]["value"] <= found[name]["spread"][1]
        assert found[name]["runs"] == [found[name]["value"]]
        assert "met" not in found[name], "the bars are not for this shape"
    assert set(found["slopes"]) == set(SHAPES["tiny"].growth.axes)
    assert set(found["peak_share"]) == {"step", "labelling", "sae"} and set(found["matmul_peak"]) == {"fp32", "bf16"}
    assert set(found["waiting_share"]) >= {"gpt2 fp32", "cocomix fp32", "cocomix bf16"}
    assert set(found["labelling_bf16_vs_dense"]["agreement_with_fp32"]) == {"reference", "exact"}
    assert found["shape"]["name"] == "tiny" and found["machine"]["threads"] > 0 and found["machine"]["torch"]
    assert set(found["raw"]) == set(GROUPS) - {"gpu"}


@pytest.mark.slow
def test_everything_is_printed(whole: tuple[dict[str, Any], str]) -> None:
    found, printed = whole
    assert all(KEYS[name].title.split(" (")[0] in printed for name in KEYS)
    assert all(f"{found[name]['value']:.2f}" in printed for name in KEYS)
    assert all(group.title.capitalize() in printed for name, group in GROUPS.items() if name != "gpu")


def test_only_some_of_it(tmp_path: Path) -> None:
    done = cocomix(
        *("bench", "--shape", "tiny", "--repeats", "2", "--device", "cpu", "--only", "generate,peak"),
        *("--json", "b.json"),
        cwd=tmp_path,
    )
    found = json.loads((tmp_path / "b.json").read_text())
    assert set(found["raw"]) == {"peak", "generate"} and set(found) & set(KEYS) == {"generate_vs_gpt2"}
    assert len(found["generate_vs_gpt2"]["runs"]) == 2
    assert "Generation" in done.stdout and "Labelling" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shape", "huge"), ("huge", "69m")),
        (("--shape", "tiny", "--only", "speed"), ("speed", "labelling")),
        (("--shape", "tiny", "--device", "tpu"), ("tpu", "cuda")),
        (("--shape", "tiny", "--device", "cpu", "--only", "gpu"), ("gpu", "cpu")),
        (("--shape", "tiny", "--json", "nowhere/b.json"), ("nowhere", "folder")),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    given = options if "--json" in options else (*options, "--json", "b.json")
    refused(cocomix("bench", *given, cwd=tmp_path, check=False), *words)
    assert not (tmp_path / "b.json").exists()
