"""`cocomix steer-eval` on a finished run."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cocomix.analysis import read_names
from cocomix.analysis.naming import STABLE
from cocomix.objectives.ntp import NtpStudent
from cocomix.objectives.retrofit import FinetuneStudent
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.pipeline.steering_stages import SteeredStudent, baseline, reader, steer_eval
from cocomix.steering.study import METHODS
from cocomix.steering.study.methods import ResidualOfBaseline
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused

pytestmark = pytest.mark.slow
ASKED = {"concepts": 4, "prompts": 2, "tokens": 8, "seed": 0}
TYPED = ("--concepts", "4", "--prompts", "2", "--tokens", "8")


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with its steering measured, and what was printed."""
    home = tmp_path_factory.mktemp("steered")
    shutil.copytree(tiny / "runs" / "tiny", home / "run")
    done = cocomix("steer-eval", "-r", "run", "-o", "out", *TYPED, cwd=home)
    (home / "printed").write_text(done.stdout)
    return home


def opened(folder: Path) -> Run:
    return Run(folder, load_config(folder / "config.yaml"))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in report.items() if name not in ("created", "command")}


def test_the_report_holds_what_it_promises(measured: Path) -> None:
    report = json.loads((measured / "out" / "report.json").read_text())
    run = opened(measured / "run")
    names = read_names(run.folder, run.sae.checksum())
    assert list(report["methods"]) == [name for name in METHODS if name != "rows"]  # of retrofitted students
    assert report["seeds"] == [0] and len(report["concepts"]) == 4
    for one in report["concepts"]:
        about = names.of(one["concept"])
        assert about.stability is not None and about.stability >= STABLE and one["words"] and one["share"] >= 0.002
    shares = [one["share"] for one in report["concepts"]]
    assert shares == sorted(shares, reverse=True)
    for name, one in report["methods"].items():
        assert tuple(dose["dose"] for dose in one["doses"]) == METHODS[name].doses
        for gain in ("presence", "words", "follow"):
            stats = one["area"][gain]
            assert 0 <= stats["low"] <= stats["high"] <= 1 and 0 <= stats["mean"] <= 1
    (judges,) = report["judges"]
    assert judges["independent"] and judges["fluency"] == "ntp_wide, seed 0" and judges["baseline"] == "ntp, seed 0"
    page = (measured / "out" / "report.html").read_text()
    assert not re.search(r"(?:src|href)=.(?!#)|https?://(?!www\.w3\.org)|@import|url\((?!#)", page)
    for words in ("residual_ntp", "along the direction that the judge looks along", *report["headline"]):
        assert words in page.replace("&#39;", "'")
    printed = " ".join((measured / "printed").read_text().split())
    assert "area, SAE" in printed and all(sentence in printed for sentence in report["headline"])


def test_a_second_call_keeps_what_is_done_and_a_stopped_one_goes_on(
    measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = measured / "run"
    first = json.loads((measured / "out" / "report.json").read_text())
    records = sorted((run / "steer-eval").rglob("stage.json"))
    assert len(records) == len(METHODS) - 1
    before = {path: path.stat().st_mtime_ns for path in records}
    again = steer_eval(run, tmp_path / "again", "cocomix", **ASKED)
    assert figures(again) == figures(first) and {path: path.stat().st_mtime_ns for path in records} == before

    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "steer-eval")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ResidualOfBaseline, "measure", stop)
        steer_eval(tmp_path / "run", tmp_path / "out", "cocomix", **ASKED)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "steer-eval").rglob("stage.json")}
    assert {path.parent.name for path in kept} == {"none", "concept", "random", "residual"}
    assert not (tmp_path / "out").exists()
    ended = steer_eval(tmp_path / "run", tmp_path / "out", "cocomix", **ASKED)
    assert figures(ended) == figures(first) and all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_another_seed_is_other_text_about_the_same_concepts(measured: Path, tmp_path: Path) -> None:
    first = json.loads((measured / "out" / "report.json").read_text())
    shutil.copytree(measured / "run", tmp_path / "run")
    asked: dict[str, Any] = {**ASKED, "seed": 1, "doses": ["residual=1,3", "concept=4"]}
    other = steer_eval(tmp_path / "run", tmp_path / "out", "cocomix", **asked)
    assert other["concepts"] == first["concepts"]
    doses = {name: [at["dose"] for at in one["doses"]] for name, one in other["methods"].items()}
    assert doses["residual"] == [1, 3] and doses["concept"] == doses["random"] == [4]
    assert any("Doses of residual, concept are not the usual ones" in one for one in other["caveats"])
    mine, theirs = (one["methods"]["concept"]["examples"][0] for one in (other, first))
    assert mine["prompt"] == theirs["prompt"] and mine["unsteered"] != theirs["unsteered"]


def test_who_judges_when_students_are_missing(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured / "run", tmp_path / "run")
    run = opened(tmp_path / "run")
    student = next(one for one in run.students if one.student == "cocomix")
    shutil.rmtree(run.folder / "students" / "ntp_wide")
    assert reader(run, student) is run.teacher
    report = steer_eval(run.folder, tmp_path / "out", "cocomix", **ASKED)
    assert not report["judges"][0]["independent"]
    assert any("FLUENCY JUDGE IS NOT INDEPENDENT" in one for one in report["caveats"])
    shutil.rmtree(run.folder / "students" / "ntp")
    assert baseline(run, student) is None
    report = steer_eval(run.folder, tmp_path / "out", "cocomix", **ASKED)
    assert "residual_ntp" not in report["methods"]
    assert any("residual_ntp is not measured" in one for one in report["caveats"])
    assert "residual_ntp steers nothing" in (tmp_path / "out" / "report.html").read_text()


def test_the_baseline_of_the_next_seed_judges_where_there_is_no_other(tiny: Path) -> None:
    run = opened(tiny / "runs" / "tiny")
    made = {(one.student, seed): one for one in run.students for seed in (one.seed,)}
    config = run.config.model_copy(update={"seeds": (0, 1, 2)})
    config.students.pop("ntp_wide")
    wider = Run(run.folder, config)
    for one in wider.students:
        one.done = lambda: True  # pyright: ignore[reportAttributeAccessIssue]
    judges = {
        one.seed: found.seed for one in wider.students if one.student == "cocomix" and (found := reader(wider, one))
    }
    assert judges == {0: 1, 1: 2, 2: 0} and ("ntp_wide", 0) in made


def test_the_students_rows_are_added_to_its_base_alone() -> None:
    student = SimpleNamespace(sae=SimpleNamespace(teacher="the teacher", layer=2))

    def base(settings: Any) -> Any:
        like: Any = SimpleNamespace(config=settings)
        steered = SteeredStudent(student, like, like, None, [], {})  # pyright: ignore[reportArgumentType]
        return steered.stages().get("base") is like

    assert base(FinetuneStudent(objective="finetune", concept_layer=3))
    assert not base(FinetuneStudent(objective="finetune", concept_layer=2)) and not base(NtpStudent(objective="ntp"))


def test_bad_input_is_one_sentence(measured: Path) -> None:
    refused(cocomix("steer-eval", "-r", "nowhere", cwd=measured, check=False), "there is no run in nowhere")

    def no(words: str, student: str = "cocomix", **changes: int) -> None:
        with pytest.raises(CocomixError, match=re.escape(words)):
            steer_eval(measured / "run", measured / "no", student, **{**ASKED, **changes})

    no("the student ntp is not trained on the SAE's concepts", student="ntp")
    no("choose --student cocomix", student="ntp")
    no("no student 'nobody' of seed 0; choose one of", student="nobody")
    no("lower --tokens by 10", tokens=50)
    assert not (measured / "no").exists()
