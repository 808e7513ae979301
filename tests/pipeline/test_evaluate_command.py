"""`cocomix evaluate --tasks` and `--snapshots` on a finished run, and what is kept of them."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cocomix.evaluation.harness.model import CoCoMixLM
from cocomix.evaluation.harness.run import metrics, run_tasks
from cocomix.evaluation.harness.tasks import Tasks
from cocomix.evaluation.perplexity import perplexity
from cocomix.model import load_causal_lm
from cocomix.pipeline.config import load_config
from cocomix.pipeline.evaluation_stages import TaskOptions, evaluate_model, evaluate_snapshots, evaluate_tasks
from cocomix.pipeline.run import Run
from cocomix.utils.console import console
from cocomix.utils.errors import CocomixError
from tests.helpers import harness_data

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Run:
    shutil.copytree(tiny / "runs" / "tiny", tmp_path / "run")
    return Run(tmp_path / "run", load_config(tmp_path / "run" / "config.yaml"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("cocomix.evaluation.harness.tasks.TaskManager", harness_data.small_index)
    return harness_data.write_task_data(tmp_path / "data")


def options(names: str | None, data: Path | None, **given: object) -> TaskOptions:
    settings = {"limit": None, "fewshot": None, "batch_size": "4", "samples": False} | given
    return TaskOptions.of(names, data, **settings)  # pyright: ignore[reportArgumentType]


def test_tasks_of_students_are_kept_in_the_harnesss_layout(run: Run, data: Path, capsys) -> None:
    asked = options("piqa", data, samples=True)
    evaluate_tasks(run, ["cocomix", "ntp"], asked)
    out = capsys.readouterr().out
    assert "piqa" in out and "cocomix" in out and "±" in out
    for name in ("cocomix", "ntp"):
        folder = run.folder / "harness" / name / "seed0" / "piqa"
        results = json.loads((folder / "results.json").read_text())
        direct = run_tasks(CoCoMixLM(run.folder / f"students/{name}/seed0/model"), Tasks(data), "piqa")
        assert direct is not None
        assert [one.value for one in metrics(results)] == pytest.approx([one.value for one in metrics(direct)])
        assert {"results", "configs", "versions", "n-shot", "n-samples", "config", "date"} <= set(results)
        record = json.loads((folder / "stage.json").read_text())
        assert record["inputs"] == {f"students/{name}/seed0": run.stages[f"students/{name}/seed0"].fingerprint}
        assert record["figures"]["documents"] == {"piqa": len(harness_data.PIQA)}
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert len(lines) == len(harness_data.PIQA) and lines[0]["task"] == "piqa"
    before = {path: path.stat().st_mtime_ns for path in (run.folder / "harness").rglob("stage.json")}
    evaluate_tasks(run, ["cocomix", "ntp"], options("piqa", data))
    assert "kept, done before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (run.folder / "harness").rglob("stage.json")} == before
    evaluate_tasks(run, ["ntp"], options("piqa", data, limit=1))
    assert json.loads((run.folder / "harness/ntp/seed0/piqa/stage.json").read_text())["settings"]["limit"] == 1


def test_any_model_folder(run: Run, data: Path, tmp_path: Path, capsys) -> None:
    folder = run.folder / "students/ntp/seed0/model"
    evaluate_model(str(folder), options("arc_easy", data), tmp_path / "out")
    assert "arc_easy" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/arc_easy/results.json").read_text())["results"]["arc_easy"]["sample_len"] == 2


def test_snapshots_by_step_with_tasks(run: Run, data: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 160)
    student = run.folder / "students/cocomix/seed0"
    for step, source in ((5, "ntp"), (60, "cocomix")):
        shutil.copytree(run.folder / f"students/{source}/seed0/model", student / f"snapshots/step-{step:08d}")
    (student / "snapshots/.step-00000070.tmp").mkdir()
    evaluate_snapshots(run, [], options("piqa", data), test=True)
    assert "val perplexity" in capsys.readouterr().out
    rows = json.loads((run.folder / "snapshots.json").read_text())["rows"]
    found = {(row["step"], row["metric"]): row["value"] for row in rows}
    assert {step for step, _ in found} == {5, 60} and {row["student"] for row in rows} == {"cocomix"}
    for step, source in ((5, "ntp"), (60, "cocomix")):
        model = load_causal_lm(run.folder / f"students/{source}/seed0/model", "it")
        for split in ("val", "test"):
            direct = perplexity(model, run.tokens.shards(split), seq_len=64, batch_size=16)
            assert found[step, f"{split} perplexity"] == pytest.approx(direct["perplexity"], rel=1e-6)
        assert 0 <= found[step, "piqa acc"] <= 1
    with (run.folder / "snapshots.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["value"]) for row in table] == [row["value"] for row in rows]
    evaluate_snapshots(run, [], options(None, None), test=False)
    assert "test perplexity" not in capsys.readouterr().out


def test_bad_input_is_one_sentence(run: Run, data: Path) -> None:
    with pytest.raises(CocomixError, match=r"no finished student .* has snapshots"):
        evaluate_snapshots(run, [], options(None, None), test=False)
    with pytest.raises(CocomixError, match="no student 'nobody'"):
        evaluate_tasks(run, ["nobody"], options("piqa", data))
    with pytest.raises(CocomixError, match="no task 'piqqa'"):
        evaluate_tasks(run, [], options("piqqa", data))
    with pytest.raises(CocomixError, match="neither a number"):
        options("piqa", data, batch_size="0")
    with pytest.raises(CocomixError, match="no task is named"):
        options(" ,", data)
    shutil.rmtree(run.folder / "students/ntp_wide")
    with pytest.raises(CocomixError, match="cocomix train ntp_wide"):
        evaluate_tasks(run, [], options("piqa", data))
    assert not (run.folder / "harness").exists()
