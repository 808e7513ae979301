"""A run made before the package was divided into layers (`tests/fixtures/README.md`) loads; nothing is redone."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import cocomix.model  # noqa: F401  registers the Auto classes
from cocomix.experiments.report import write_experiment_report
from cocomix.labels import LabelStore
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.report import write_report
from cocomix.sae import TopKSAE
from cocomix.steering.study.report import write_steering_report
from tests.helpers.command import cocomix as command

FIXTURE = Path(__file__).parents[1] / "fixtures" / "old_run"
RESULTS = Path(__file__).parents[2] / "results"
STUDENTS = ("ntp", "cocomix", "keys_values")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE / "run", tmp_path / "run"))


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """What the old code computed from the run, by name."""
    return load_file(FIXTURE / "expected.safetensors")


def records(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("stage.json")}


def test_every_stage_is_finished(folder: Path) -> None:
    run = Run(folder, load_config(folder / "config.yaml"))
    assert {name: stage.done() for name, stage in run.stages.items()} == dict.fromkeys(run.stages, True)
    assert set(run.stages) == {
        "corpus", "tokens", "teacher", "sae", "labels/exact",
        *(f"{kind}/{name}/seed0" for kind in ("students", "evaluation") for name in STUDENTS),
    }  # fmt: skip


def test_the_commands_make_nothing_again(folder: Path) -> None:
    before, old = records(folder), json.loads((folder / "report.json").read_text())
    assert len(before) == 11
    command("demo", "-r", "run", cwd=folder.parent)  # its text is not there: a stage made again would fail
    assert records(folder) == before
    command("report", "-r", "run", cwd=folder.parent)
    assert records(folder) == before and (folder / "report.html").exists()
    new = json.loads((folder / "report.json").read_text())
    assert new.keys() == old.keys() and new["derived"] == old["derived"] and new["headline"] == old["headline"]
    page = (folder / "report.html").read_text()
    certificate = page[page.index("Does the channel matter?") :]
    assert certificate.index("–") < certificate.index("</table>") and "used" not in certificate.split("</table>")[0]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_gives_the_same_logits(name: str, expected: dict[str, torch.Tensor]) -> None:
    model = AutoModelForCausalLM.from_pretrained(FIXTURE / f"run/students/{name}/seed0/model").eval()
    with torch.no_grad():
        output = model(input_ids=expected["input_ids"])
    torch.testing.assert_close(output.logits, expected[f"{name}.logits"], rtol=1e-5, atol=1e-5)
    if name != "ntp":
        torch.testing.assert_close(output.concept_logits, expected[f"{name}.concept_logits"], rtol=1e-5, atol=1e-5)


def test_what_students_are_taught_with_opens(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    run = Run(folder, load_config(folder / "config.yaml"))
    teacher, sae = run.teacher.model(), TopKSAE.from_pretrained(folder / "sae/model")
    with torch.no_grad():
        torch.testing.assert_close(
            teacher(input_ids=expected["input_ids"]).logits, expected["teacher.logits"], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(sae(expected["sae.input"]), expected["sae.decoded"], rtol=1e-5, atol=1e-5)
    ids = run.tokens.shards("train").windows(np.array([40]), run.config.seq_len)
    assert np.array_equal(ids, expected["input_ids"].numpy())
    store = LabelStore.open(run.folder / "labels/exact/train/helpful")
    assert np.array_equal(store.read(np.array([40]), run.config.seq_len), expected["labels.exact.helpful"].numpy())


NUMBER = re.compile(r"\d+(?:\.\d+)?")
WRITERS = {
    "demo": write_report,
    "rules": write_report,
    "cpu": write_experiment_report,
    "steering": write_steering_report,
    "steering/activation": write_steering_report,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_committed_report_can_be_written_again(name: str, tmp_path: Path) -> None:
    report = json.loads((RESULTS / name / "report.json").read_text(encoding="utf-8"))
    raw = report | ({"claims": report["recipe"]["claims"]} if "recipe" in report else {})  # as they were asked
    WRITERS[name](raw, tmp_path)
    again = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    if "claims" in report:
        again["claims"], report["claims"] = measured(again["claims"]), measured(report["claims"])
    assert list(differing(again, report)) == [] and (tmp_path / "report.html").stat().st_size > 10_000


def measured(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the changed rule of verdicts leaves alone: each comparison's figures, and each setting's interval."""
    judged = {"ci95", "verdict", "freedom", "error", "p_other_side"}

    def kept(part: dict[str, Any]) -> dict[str, Any]:
        settings = {
            name: {key: stats[key] for key in ("difference", "ci95", "n")} for name, stats in part["by_setting"].items()
        }
        return {key: value for key, value in part.items() if key not in judged} | {"by_setting": settings}

    same = ("id", "statement", "holds_equal", "seeds", "corpora", "direction")
    return [{key: claim[key] for key in same} | {"parts": list(map(kept, claim["parts"]))} for claim in claims]


def differing(new: Any, old: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two reports differ by more than the quantiles of t do, of which the old code had three decimals."""
    if isinstance(new, dict) and isinstance(old, dict) and new.keys() == old.keys():
        for key in new:
            yield from differing(new[key], old[key], f"{path}.{key}")
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for place, pair in enumerate(zip(new, old, strict=True)):
            yield from differing(*pair, f"{path}.{place}")
    elif isinstance(new, str) and isinstance(old, str) and new != old:
        if NUMBER.sub("", new) != NUMBER.sub("", old):
            yield path, new, old
        else:  # a last digit that was rounded the other way
            figures = ([float(figure) for figure in NUMBER.findall(text)] for text in (new, old))
            if next(figures) != pytest.approx(next(figures), rel=1e-3, abs=1.1e-2):
                yield path, new, old
    elif new != old and (isinstance(new, bool) or new != pytest.approx(old, rel=1e-3, abs=1e-3, nan_ok=True)):
        yield path, new, old
