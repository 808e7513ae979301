"""Students that go on from a shorter finished training, or start from other weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.train.trainer import Trainer
from cocomix.utils.errors import CocomixError
from tests.helpers.launched_commands import prepare, weights

STAGE = "students/ntp/seed0"
CONSTANT = ("students_train.schedule=constant", "students_train.warmup_steps=2", "students_train.n_snapshots=0")
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("home"))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are taken."""
    taken: list[int] = []
    real = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, loss: (taken.append(self.step), real(self, loss))[1])
    return taken


def run(home: Path, *overrides: str) -> Run:
    return Run(home / "run", load_config(home / "recipe.yaml", overrides))


def test_a_finished_student_is_extended_where_its_schedule_allows_it(
    home: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run(home, *CONSTANT, "students_train.steps=9").run_stage(STAGE)  # from the start
    whole = weights(home / "run")
    run(home, *CONSTANT, "students_train.steps=6").run_stage(STAGE)
    run(home, *CONSTANT, "students_train.steps=12").run_stage(STAGE, extend=True)
    assert steps == [*range(9), *range(6), *range(9, 12)]  # the longest that is finished is extended
    said = " ".join(capsys.readouterr().out.split())
    assert "goes on from step 9 of the finished 9 steps" in said
    run(home, *CONSTANT, "students_train.steps=9").run_stage(STAGE)
    assert weights(home / "run") == whole and len(steps) == 18


def test_a_cosine_is_not_extended_and_the_reason_is_said(
    home: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run(home, "students_train.steps=4").run_stage(STAGE)
    with pytest.raises(CocomixError, match=r"cannot be extended: its schedule, cosine, depends .*use constant or wsd"):
        run(home, "students_train.steps=5").run_stage(STAGE, extend=True)
    assert steps == [0, 1, 2, 3]
    capsys.readouterr()
    run(home, "students_train.steps=5").run_stage(STAGE)
    assert steps[4:] == [0, 1, 2, 3, 4]
    assert "it is trained from the start" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(CocomixError, match="only students can"):
        run(home).run_stage("tokens", extend=True)


def test_muon_is_extended_and_no_other_optimizer_goes_on_from_it(home: Path, steps: list[int]) -> None:
    muon = (*CONSTANT, "students_train.optimizer=muon")
    run(home, *muon, "students_train.steps=4").run_stage(STAGE)
    run(home, *muon, "students_train.steps=6").run_stage(STAGE, extend=True)
    assert steps == [0, 1, 2, 3, 4, 5]
    with pytest.raises(CocomixError, match="there is no finished training to extend"):
        run(home, *muon, "students_train.muon_momentum=0.9", "students_train.steps=8").run_stage(STAGE, extend=True)
    assert len(steps) == 6


def test_a_student_starts_from_other_weights_which_its_fingerprint_holds(home: Path, tmp_path: Path) -> None:
    run(home, "students_train.steps=4").run_stage(STAGE)
    model = tmp_path / "model"
    model.mkdir()
    start = {name: tensor + 0.01 for name, tensor in load_file(home / f"run/{STAGE}/model/model.safetensors").items()}
    save_file(start, model / "model.safetensors")
    overrides = ("students_train.steps=1", "students_train.learning_rate=1e-12", f"students_train.init_from={model}")
    student = run(home, *overrides).stages[STAGE]
    fingerprint = student.fingerprint
    run(home, *overrides).run_stage(STAGE)
    made = load_file(home / f"run/{STAGE}/model/model.safetensors")
    assert all(torch.allclose(made[name], tensor, atol=1e-6) for name, tensor in start.items())
    start["transformer.wte.weight"] += 1
    save_file(start, model / "model.safetensors")
    assert run(home, *overrides).stages[STAGE].fingerprint != fingerprint
    for change, words in (
        ({"transformer.wte.weight": torch.zeros(3, 16)}, r"wte\.weight has shape \[3, 16\] there"),
        ({"odd": torch.zeros(1)}, "odd is not in the student"),
    ):
        save_file(start | change, model / "model.safetensors")
        with pytest.raises(CocomixError, match=words):
            run(home, *overrides).run_stage(STAGE)
    save_file({"odd": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(CocomixError, match="is missing there; give weights"):
        run(home, *overrides).run_stage(STAGE)
    with pytest.raises(CocomixError, match="neither a finished stage"):
        run(home, "students_train.init_from=nowhere").run_stage(STAGE)
