"""Presets and the dial: what they set, who wins, and what a run keeps."""

from typing import Any

import pytest

from cocomix.pipeline.config import RunConfig, validate_config
from cocomix.pipeline.presets import RATE, RATE_EXPONENT, WIDTHS, dial
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import identity


def config(**settings: Any) -> RunConfig:
    raw: dict[str, Any] = {"teacher": {"pretrained": "x"}, "sae": {"pretrained": "y"}, "seq_len": 128}
    raw |= {"students": {"ntp": {"objective": "ntp"}}, "students_train": {"steps": 5}}
    return validate_config(raw | settings, "test")


def test_each_size_is_the_rules() -> None:
    for size, width in enumerate(WIDTHS, 1):
        values = dial(size, 128)
        assert (values.width, values.layers) == (width, max(6, width / 64)) and width % values.heads == 0
        assert width / values.heads == (32 if width < 512 else 64)
        assert values.batch_size == round(8 * max(1, width**2 / 256**2))
        assert values.learning_rate == pytest.approx(RATE * (64 / width) ** RATE_EXPONENT, rel=5e-3)
        student = config(size=size)
        assert student.students["ntp"].model.width == width and student.students["ntp"].model.heads == values.heads
        assert student.students_train.learning_rate == values.learning_rate
        assert student.students_train.batch_size == values.batch_size


def test_given_settings_win() -> None:
    students = {"ntp": {"objective": "ntp", "model": {"backbone": "llama", "layers": 9}}, "kd": {"objective": "kd"}}
    found = config(size=3, students=students, students_train={"steps": 5, "learning_rate": 0.5})
    assert found.students["ntp"].model.model_dump(include={"backbone", "width", "layers", "heads"}) == {
        "backbone": "llama",
        "width": 128,
        "layers": 9,
        "heads": 4,
    }
    assert found.students["kd"].model.layers == 6
    assert found.students_train.learning_rate == 0.5 and found.students_train.batch_size == 8


def test_a_run_keeps_the_values_and_not_the_size() -> None:
    found = config(size=2)
    saved = found.model_dump(mode="json")
    assert saved["size"] is None and saved["students"]["ntp"]["model"]["width"] == 96
    assert validate_config(saved, "again") == found
    assert "size" not in identity(config()) and config().students["ntp"].model.width == 128


def test_the_strong_preset_is_every_students() -> None:
    mixing = {"concept_layer": 1, "loss_weight": 0}
    students = {"ntp": {"objective": "ntp"}, "mix": {"objective": "cocomix", "concept": mixing}}
    students["llama"] = {"objective": "ntp", "model": {"backbone": "llama"}}
    found = config(preset="strong", size=3, students=students, students_train={"steps": 5, "schedule": "wsd"})
    for name, backbone in (("ntp", "qwen3"), ("mix", "qwen3"), ("llama", "llama")):
        model = found.students[name].model
        assert (model.backbone, model.init, model.width) == (backbone, "width", 128)
    train = found.students_train
    assert (train.optimizer, train.schedule, train.z_loss, train.batch_size) == ("muon", "wsd", 1e-4, 8)
    assert found.preset is None and validate_config(found.model_dump(mode="json"), "again") == found
    plain = config(preset="plain")
    assert plain == config() and "preset" not in identity(plain)
    with pytest.raises(CocomixError, match="no preset 'weak'; choose one of plain, strong"):
        config(preset="weak")


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("teacher", {"model": {"logit_cap": 5.0}}, "leave teacher.model.logit_cap out"),
        ("sae", {"optimizer": "muon"}, "set sae.train.optimizer to adamw"),
        ("sae", {"z_loss": 0.1}, "leave sae.train.z_loss out"),
    ],
)
def test_what_has_no_blocks_or_no_logits_of_its_own(section: str, values: dict[str, Any], sentence: str) -> None:
    train = {"steps": 5} | (values if section == "sae" else {})
    with pytest.raises(CocomixError, match=sentence):
        config(**{section: {"train": train} | (values if section == "teacher" else {})})


@pytest.mark.parametrize("size", [0, 9, "large", True, 1.5])
def test_what_is_not_on_the_dial(size: Any) -> None:
    with pytest.raises(CocomixError, match=r"size .* is not on the dial; give a whole number from 1 to 8"):
        config(size=size)


def test_other_faults_are_named_by_their_section() -> None:
    with pytest.raises(CocomixError, match="seq_len"):
        config(size=1, seq_len="long")
    with pytest.raises(CocomixError, match="students"):
        config(size=1, students=3)
    with pytest.raises(CocomixError, match="students_train"):
        config(size=1, students_train=3)
