"""A short probe with other settings deleted the checkpoints of the run that was to go on (nanoGPT #295 and others)."""

import os
import signal
from pathlib import Path

import pytest

from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.train.trainer import Trainer
from tests.helpers.launched_commands import STEPS, checkpoints, ended, fork, prepare, wait_until, weights

STAGE = "students/ntp/seed0"
TRAIN = ["-m", "cocomix", "train", "ntp", "-r", "run", "-c", "recipe.yaml"]


@pytest.mark.usefixtures("no_waiting_for_the_disk")
def test_a_probe_with_other_settings_deletes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = prepare(tmp_path)

    def trained(*overrides: str) -> Run:
        run = Run(home / "run", load_config(home / "recipe.yaml", overrides))
        run.run_stage(STAGE)
        return run

    probe = "students_train.steps=5"
    trained(probe)
    finished = weights(home / "run")

    process = fork(home, *TRAIN, "--replace", "students_train.checkpoint_seconds=0.01")
    wait_until(lambda: checkpoints(home / "run"), process)
    process.send_signal(signal.SIGTERM)
    ((code, said),) = ended(process)
    assert code == 0 and f"of {STEPS} and saved; rerun the same command to resume" in said
    saved = {path: path.stat().st_ino for path in checkpoints(home / "run")}
    assert saved

    capsys.readouterr()
    trained("students_train.steps=6")
    assert {path: path.stat().st_ino for path in checkpoints(home / "run")} == saved
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "the finished one has other settings (train.steps 5 -> 6)" in said
        and "1 unfinished with other settings" in said
    )

    steps: list[int] = []
    real = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, loss: (steps.append(self.step), real(self, loss))[1])
    trained()
    assert 0 < steps[0] == int(list(saved)[-1].name.removeprefix("step-")) and steps[-1] == STEPS - 1
    assert not checkpoints(home / "run")
    before = os.stat(next((home / "run/.kept").glob("students--ntp--seed0--*/stage.json")))
    assert before.st_size and len(list((home / "run/.kept").iterdir())) == 2

    stage = trained(probe).stages[STAGE]  # back at once, the same files
    assert weights(home / "run") == finished and stage.done()
