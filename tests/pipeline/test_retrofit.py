"""`cocomix retrofit` on a finished run: what it stores, that nothing else is redone, and what it refuses."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from cocomix.evaluation.recall import concept_nats, training_counts
from cocomix.model.flops import TrainedPart, model_flops, partial_training_flops
from cocomix.objectives import OBJECTIVES
from cocomix.pipeline.config import load_config
from cocomix.pipeline.retrofit import retrofit_overrides
from cocomix.pipeline.run import Run
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused

SHORT = ("students_train.steps=5", "students_train.n_evals=1", "evaluation.windows=6", "evaluation.curve_windows=2")


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose concept model was retrofitted, the channel alone."""
    home = tmp_path_factory.mktemp("retrofit")
    shutil.copytree(tiny / "runs" / "tiny", home / "run")
    done = cocomix("retrofit", "teacher", "-r", "run", "--trains", "channel", *SHORT, cwd=home)
    assert "as it is" in done.stdout and "retrofitted" in done.stdout
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Run:
    return Run(home / "run", load_config(home / "run" / "config.yaml"))


@pytest.mark.slow
def test_it_is_compared_with_its_base(run: Run) -> None:
    figures = json.loads((run.folder / "retrofit/retrofit/seed0/stage.json").read_text())["figures"]
    base = run.teacher.model()
    shards, seq_len = run.tokens.shards("val"), run.config.seq_len
    chosen = np.unique(np.linspace(0, shards.n_windows(seq_len) - 1, 6).round().astype(int))
    ids = torch.from_numpy(shards.windows(chosen, seq_len))
    with torch.no_grad():
        logits = base(ids).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert figures["loss"]["base"]["val"] == pytest.approx(float(expected), rel=1e-5)
    assert set(figures["loss"]) == {"base", "retrofitted"}  # without a channel nothing would be trained
    assert abs(figures["loss"]["retrofitted"]["val"] - figures["loss"]["base"]["val"]) < 0.1
    concepts = figures["concepts"]
    assert concepts["nats"] == pytest.approx(concepts["marginal"] - concepts["concept_loss"])
    assert concepts["interval"][0] < concepts["nats"] < concepts["interval"][1]
    assert 0 < concepts["recall"] <= 1 and figures["trained_parameters"] < figures["parameters"]


@pytest.mark.slow
def test_what_it_saves_is_an_adapter_of_the_runs_own_teacher(run: Run, home: Path) -> None:
    folder = run.folder / "students/retrofit/seed0/model"
    record = json.loads((folder / "config.json").read_text())["adapter"]
    assert record["base"] == "../../../../teacher/model"
    moved = shutil.copytree(run.folder, home / "moved")
    loaded = AutoModelForCausalLM.from_pretrained(moved / "students/retrofit/seed0/model")
    ids = torch.tensor([[5, 6, 7, 8]])
    stage = next(stage for stage in run.students if stage.student == "retrofit")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, stage.model()(ids).logits)
    expected = partial_training_flops(loaded.config, run.config.seq_len, TrainedPart())
    assert stage.figures["flops_per_token"] == expected < model_flops(loaded.config, run.config.seq_len).training


@pytest.mark.slow
def test_nothing_else_is_redone_and_again_it_is_kept(run: Run, home: Path) -> None:
    done = cocomix("retrofit", "teacher", "-r", "run", cwd=home)
    lines = [line for line in done.stdout.splitlines() if line.lstrip().startswith("[")]
    assert len(lines) >= 8 and all("kept, done before" in line for line in lines)
    other = cocomix("retrofit", "teacher", "-r", "run", "--trains", "all", cwd=home, check=False)
    refused(other, "students.retrofit.trains=all")


def reader(labels: np.ndarray) -> Any:
    return SimpleNamespace(read=lambda indices, _: labels[indices], n_labels=labels.shape[-1], where="these")


def test_concept_nats_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    n_windows, seq, k, c = 7, 5, 2, 9
    train, val = (rng.integers(0, c, (n_windows, seq, k)) for _ in range(2))
    val[rng.random(val.shape[:2]) < 0.3] = -100
    logits = torch.from_numpy(rng.normal(size=(n_windows, seq, c))).float()
    ids = np.arange(n_windows)[:, None] * np.ones((1, seq), dtype=np.int64)
    shards: Any = SimpleNamespace(n_windows=lambda _: n_windows, windows=lambda indices, _: ids[indices])

    class Model(torch.nn.Linear):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(concept_logits=logits[input_ids[:, 0]])

    counts = training_counts(reader(train), n_windows, c, seq_len=seq)
    found = concept_nats(Model(1, 1), shards, reader(val), counts, seq_len=seq, batch_size=3)
    seen = Counter(train.flatten().tolist())
    total = sum(seen.values()) + c
    by_student, by_marginal, n = 0.0, 0.0, 0
    for window in range(n_windows):
        for place in range(seq):
            for label in val[window, place]:
                if label >= 0:
                    by_student -= float(logits[window, place].log_softmax(-1)[label])
                    by_marginal -= np.log((seen[int(label)] + 1) / total)
                    n += 1
    assert found["concept_loss"] == pytest.approx(by_student / n, rel=1e-5)
    assert found["marginal"] == pytest.approx(by_marginal / n)


def test_a_run_of_a_model_is_made_of_its_settings(tmp_path: Path) -> None:
    from tests.model.test_from_plain import LAYERS, plain

    plain("llama").save_pretrained(tmp_path / "model")
    raw = {"sae": {"k": 2}, "labels": {"mine": {}}}
    overrides = dict(one.split("=", 1) for one in retrofit_overrides(str(tmp_path / "model"), raw))
    assert overrides["teacher.pretrained"] == overrides["tokens.tokenizer"] == str(tmp_path / "model")
    assert overrides["sae.layer"] == str(LAYERS // 2 - 1) and overrides["baseline"] == "finetuned"
    assert "labels: mine" in overrides["students.retrofit"]
    with pytest.raises(CocomixError, match="label set"):
        retrofit_overrides("teacher", {})


CASES = [
    ({"objective": "retrofit", "labels": "a", "trains": "half"}, "channel, lora, all"),
    ({"objective": "retrofit", "labels": "a", "base": "folder", "head_from": "sae"}, "base: teacher"),
    ({"objective": "retrofit", "labels": "a", "vector_from": "sae"}, "head_from: sae"),
    ({"objective": "retrofit", "labels": "a", "concept": {"vector_scale": 0.3}}, "starts at zero"),
    ({"objective": "retrofit", "labels": "a", "model": {"width": 64}}, "the base's"),
    ({"objective": "finetune", "trains": "channel"}, "nothing to train"),
]


@pytest.mark.parametrize(("settings", "words"), CASES)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OBJECTIVES[settings["objective"]].model_validate(settings)
