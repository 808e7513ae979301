"""Controls are found by their settings, in the recipe that compares with them and in changed ones."""

from pathlib import Path
from typing import Any

import pytest

import cocomix
from cocomix.experiments.config import ExperimentConfig
from cocomix.pipeline.channel_controls import control_kind, controls_of, mixes_vector
from cocomix.pipeline.config import RunConfig, validate_config
from cocomix.utils.settings import read_yaml, validate

RECIPE = Path(cocomix.__file__).parents[2] / "recipes" / "cpu" / "mixing.yaml"


@pytest.fixture(scope="module")
def config() -> RunConfig:
    recipe = validate(ExperimentConfig, read_yaml(RECIPE), str(RECIPE))
    return recipe.run_config("strong", Path("runs/mixing"))


def found(config: RunConfig, name: str, **sizes: int) -> dict[str, str]:
    return controls_of(config, name, dict.fromkeys(config.students, 1000) | sizes)


def test_the_recipes_controls(config: RunConfig) -> None:
    assert {name: kind for name in config.students if (kind := control_kind(config, config.students[name]))} == {
        "bare_hash": "hash",
        "residual_hash": "hash",
        "residual_hash_next": "hash_next",
        "residual_random": "random",
        "residual_mlp": "mlp",
    }
    controls = {"hash": "residual_hash", "random": "residual_random", "mlp": "residual_mlp"}
    assert found(config, "residual_absolute") == controls
    assert found(config, "bare_absolute") == {"hash": "bare_hash"}
    assert "random" not in found(config, "residual_activation"), "those are another set's labels, moved about"
    assert found(config, "residual_absolute_scaled") == {}, "its vector starts at another scale"
    assert found(config, "residual_absolute_falling") == {"mlp": "residual_mlp"}, "their concept loss does not fall"
    assert found(config, "residual_mlp") == found(config, "ntp") == {}
    assert mixes_vector(config.students["residual_mlp"]) and not mixes_vector(config.students["ntp"])


def test_names_do_not_matter_and_sizes_do(config: RunConfig) -> None:
    raw: dict[str, Any] = config.model_dump(mode="json")
    numbers = {name: f"s{number}" for number, name in enumerate(config.students)}
    raw["students"]["residual_mlp"]["match_parameters"] = numbers["residual_absolute"]
    raw["students"] = {numbers[name]: student for name, student in raw["students"].items()}
    raw["baseline"] = "s0"
    renamed = validate_config(raw, "the test")
    assert found(renamed, numbers["residual_absolute"])["hash"] == numbers["residual_hash"]
    assert "hash" not in found(config, "residual_absolute", residual_hash=1060)
    assert "hash" in found(config, "residual_absolute", residual_hash=1040)


def test_students_that_are_controls_by_an_option_or_an_objective(config: RunConfig) -> None:
    raw: dict[str, Any] = config.model_dump(mode="json")
    ours = raw["students"]["residual_absolute"]
    own = {"objective": "hash", "n_latents": 2048, "model": ours["model"], "concept": ours["concept"], "length": 1.0}
    raw["students"] = {
        "ntp": raw["students"]["ntp"],
        "ours": ours,
        "moved": ours | {"shuffled": True},
        "tokens": own,
        "next": own | {"of": "next"},
        "shorter": own | {"length": 0.5},
    }
    assert found(validate_config(raw, "the test"), "ours") == {"random": "moved", "hash": "tokens"}
