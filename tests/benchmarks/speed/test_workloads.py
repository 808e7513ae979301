"""The workloads do the work they are credited for."""

from dataclasses import replace

import pytest
import torch

from benchmarks.speed.groups import measure_interleaved
from benchmarks.speed.labelling import DenseLabels, OurLabels
from benchmarks.speed.optimizers import measure as measure_optimizers
from benchmarks.speed.own_process import measure_in_own_process
from benchmarks.speed.sae_steps import SAE_STEPS, OurSae, SaeStep
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.students import MIXINGS, STUDENTS, TrainingState, TrainingStep
from benchmarks.speed.synthetic import StoredData, autoencoder, concept_model
from benchmarks.speed.workload import Setting
from cocomix.train.optimizer import OPTIMIZERS
from cocomix.utils.errors import CocomixError

SETTING = Setting(SHAPES["tiny"], 1, torch.device("cpu"), 0)


@pytest.fixture(scope="module")
def data() -> StoredData:
    return StoredData(SETTING.shape, SETTING.seed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*STUDENTS, *MIXINGS])
def test_a_step_updates_every_weight_in_three_laps(name: str, precision: str, data: StoredData) -> None:
    step, laps = TrainingStep(TrainingState(name, SETTING, data), precision), []
    step.prepare()
    student, _ = step.state.built()
    before = [parameter.detach().clone() for parameter in student.parameters()]
    step.run(laps.append)
    assert laps == ["data", "forward_backward", "update"]
    assert all(not torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.long
def test_optimizers_are_compared_step_by_step() -> None:
    found = measure_optimizers(SETTING, "fp32")
    assert list(found) == list(OPTIMIZERS) and found["adamw"]["step_vs_adamw"]["value"] == 1
    assert found["muon"]["update_vs_adamw"]["value"] > 0


def test_batches_come_with_labels_and_go_round(data: StoredData) -> None:
    shape = SETTING.shape
    rounds = data.windows // shape.batch
    first, again = (data.batch(number, shape.batch, SETTING.device) for number in (0, rounds))
    other = data.batch(1, shape.batch, SETTING.device)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])
    labels = first["concept_labels"]
    assert labels.shape == (shape.batch, shape.seq_len, shape.labels)
    assert (labels[:, -1] == -100).all() and (labels[:, :-1] >= 0).all()


@pytest.mark.parametrize("build", SAE_STEPS)
def test_every_autoencoder_takes_a_step_on_the_same_hidden_states(build) -> None:
    one: SaeStep = build(SETTING)
    try:
        one.prepare()
    except CocomixError as error:
        pytest.skip(str(error))
    assert torch.equal(one.x, OurSae(SETTING).x)
    before = {name: parameter.detach().clone() for name, parameter in one.module.named_parameters()}
    one.run(lambda lap: None)
    assert any("enc" in name for name in before) and any("dec" in name for name in before)
    assert all(not torch.equal(before[name], after) for name, after in one.module.named_parameters())


def test_a_workload_that_is_not_available_is_listed_with_the_reason() -> None:
    class Absent(OurSae):
        name = "absent"

        def build(self) -> torch.nn.Module:
            raise CocomixError("not installed; install it")

    found = measure_interleaved([OurSae(SETTING), Absent(SETTING)], 1, SETTING, lambda done, total: None)
    assert list(found["contestants"]) == ["cocomix"] and found["missing"] == {"absent": "not installed; install it"}


def test_labelling_keeps_the_batch_that_took_least_for_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    one = DenseLabels(SETTING, concept_model(SETTING), autoencoder(SETTING))
    took = {1: 3.0, 2: 4.0}
    monkeypatch.setattr(one, "_pass", took.__getitem__)
    one.prepare()
    assert one.batch_size == min(took, key=lambda size: took[size] / size) and str(one.batch_size) in one.note


@pytest.mark.parametrize("rule", ["reference", "exact"])
def test_our_labels_cover_every_window(rule: str) -> None:
    one = OurLabels(SETTING, concept_model(SETTING), autoencoder(SETTING), rule, "fp32")
    one.run(lambda lap: None)
    shape = SETTING.shape
    assert one.labels.ids.shape == (shape.label_windows, shape.seq_len, shape.labels)
    assert one.labels.valid[:, :-1].any() and one.units == shape.label_windows * shape.seq_len


def test_a_process_of_its_own_finds_at_least_weights_gradients_and_moments() -> None:
    wide = replace(SETTING, shape=SETTING.shape.model_copy(update={"width": 64, "vocab": 60_000}))
    student = STUDENTS["gpt2"](wide.shape)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in student.parameters())
    found = measure_in_own_process("gpt2", "fp32", wide)
    assert found["forward_backward"] >= 2 * weights and found["step"] >= 4 * weights
    assert found["before"] > 0 and len(found["seconds"]) == 2


def test_a_failed_process_is_reported_in_one_sentence() -> None:
    with pytest.raises(CocomixError, match="nobody fp32 did not finish"):
        measure_in_own_process("nobody", "fp32", SETTING)
