"""Statistics of a tiny run's student: kept, gathered again when they must be, with or without stored labels."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cocomix.analysis import ConceptStatistics, gather_statistics
from cocomix.pipeline.concept_stages import statistics_path, student_statistics
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run, student_stage
from cocomix.utils.errors import CocomixError

TOKENS = 2000


@pytest.fixture
def stage(tiny: Path, tmp_path: Path) -> StudentStage:
    shutil.copytree(tiny / "runs" / "tiny", tmp_path / "run")
    return student_stage(existing_run(tmp_path / "run"), "cocomix", 0)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made: the checksum of each student's weights."""
    made: list[str] = []

    def counted(student, shards, key, **how) -> ConceptStatistics:
        made.append(key.student)
        return gather_statistics(student, shards, key, **how)

    monkeypatch.setattr("cocomix.pipeline.concept_stages.gather_statistics", counted)
    return made


def counts(found: ConceptStatistics) -> list[list[int]]:
    return [one.tolist() for one in (found.predicted, found.predicted_labelled, found.true, found.both)]


def test_it_is_made_once(stage: StudentStage, built: list[str]) -> None:
    first = student_statistics(stage, tokens=TOKENS)
    assert first.truth == "exact/helpful labels" and 0 < first.labelled < first.positions
    assert first.both.sum() > 0 and TOKENS <= first.positions < TOKENS + stage.run_config.seq_len
    again = student_statistics(stage, stage.model(), tokens=TOKENS)
    assert counts(again) == counts(first) and len(built) == 1


def test_other_weights_get_another(stage: StudentStage, built: list[str]) -> None:
    first = student_statistics(stage, tokens=TOKENS)
    weights = stage.folder / "model" / "model.safetensors"
    held = load_file(weights)
    often = int(first.predicted.argmax())
    held["channel.head.proj.bias"][often] -= 1e3
    save_file(held, weights, metadata={"format": "pt"})
    record = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
    unsealed = {key: value for key, value in record.items() if key not in ("files", "seal")}  # nobody's damage
    (stage.folder / "stage.json").write_text(json.dumps(unsealed), encoding="utf-8")
    second = student_statistics(stage, tokens=TOKENS)
    assert first.predicted[often] and not second.predicted[often] and len(set(built)) == 2


def test_without_stored_labels_they_are_made_again(stage: StudentStage) -> None:
    stored = student_statistics(stage, tokens=TOKENS)
    statistics_path(stage).unlink()
    _delete(stage.run_dir / "labels")
    made = student_statistics(stage, tokens=TOKENS)
    assert made.key == stored.key and counts(made) == counts(stored)


@pytest.mark.parametrize("labels_too", [True, False])
def test_without_a_teacher_nothing_is_true(stage: StudentStage, labels_too: bool) -> None:
    with_labels = student_statistics(stage, tokens=TOKENS)
    _delete(stage.run_dir / "teacher")
    if labels_too:
        _delete(stage.run_dir / "labels")
    found = student_statistics(stage, tokens=TOKENS)
    assert found.truth is None and found.labelled == 0
    assert found.predicted.tolist() == with_labels.predicted.tolist()


def _delete(folder: Path) -> None:
    """Free the disk of what the stages below `folder` made; what they found stays on record."""
    for record in list(folder.rglob("stage.json")):
        for path in record.parent.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


def test_a_student_without_concepts_is_refused(stage: StudentStage) -> None:
    plain = student_stage(existing_run(stage.run_dir), "ntp", 0)
    with pytest.raises(CocomixError, match="predicts no concepts"):
        student_statistics(plain, tokens=TOKENS)
