"""Every recipe validates, and the paper's have its sizes, lengths and hyper-parameters."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan import plan
from cocomix.pipeline.config import RunConfig
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import read_yaml, validate

RECIPES = Path(__file__).parents[2] / "recipes"
PREDICTOR = RECIPES / "claims" / "predictor.yaml"
EXPERIMENTS = sorted(path for path in RECIPES.rglob("*.yaml") if path.parent.name != "data" and path != PREDICTOR)
PAPER = sorted((RECIPES / "paper").glob("*.yaml"))
NOWHERE = Path("no-such-folder")


def load(path: Path) -> ExperimentConfig:
    return validate(ExperimentConfig, read_yaml(path), str(path))


@cache
def paper(name: str) -> tuple[ExperimentConfig, RunConfig, dict[str, dict[str, Any]]]:
    """A recipe of the paper's, its one setting's run, and the planned variants by name."""
    config = load(RECIPES / "paper" / f"{name}.yaml")
    (setting,) = config.settings
    rows = plan(config, NOWHERE)["settings"][setting]["variants"]
    return config, config.run_config(setting, NOWHERE), {row["name"]: row for row in rows}


def gpt2_parameters(width: int, layers: int) -> int:
    """GPT-2's vocabulary and 1024 positions, blocks of 12 d^2 + 13 d, the last norm; the head is tied."""
    return (50257 + 1024) * width + layers * (12 * width**2 + 13 * width) + 2 * width


def concept_parameters(width: int) -> int:
    """Head: 32768 rows, as many biases, the pre-bias. Vector: 32768 rows and a bias."""
    return 2 * 32768 * width + 32768 + 2 * width


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_validates(path: Path) -> None:
    config = load(path)
    for setting in config.settings:
        run = config.run_config(setting, NOWHERE)
        assert tuple(run.students) == config.names(setting)
    assert {name for name in config.frontier if name not in config.variants} == set()
    assert config.baseline in config.variants


CLAIMS = sorted(path for path in (RECIPES / "claims").glob("*.yaml") if path != PREDICTOR)


@pytest.mark.parametrize("path", CLAIMS, ids=lambda path: path.stem)
def test_recipes_of_the_law_have_equal_tries_controls_and_say_how_many_students(path: Path) -> None:
    config = load(path)
    assert config.tuning and config.controls, "no learning rates are tried, or no controls are named"
    trained = sum(
        sum(config.trains(name, seed) for seed in config.settings[setting].seeds or config.seeds)
        + len(config.tuning.learning_rates) * (config.tuning.tried(name) == name)
        for setting in config.settings
        for name in config.names(setting)
    )
    assert f"\n# {trained} students, " in path.read_text()
    concepts = [
        v for v in config.variants.values() if v["objective"] == "cocomix" and "hash" not in v.get("labels", "")
    ]
    slots = {(v["concept"].get("mixer_options") or {}).get("slot", "bare") for v in concepts}
    assert slots == {"bare", "residual"}, "concept students are not there in both forms"
    for group in config.controls:
        assert any(config.variants[name].get("labels") == "hash" for name in group.controls)


SIZES = [("69m", 512, 8, 8, 3, 6e-4, 512), ("386m", 1024, 24, 16, 5, 3e-4, 512), ("1.38b", 2048, 24, 16, 5, 2e-4, 1024)]


@pytest.mark.parametrize("budget", ["20b", "200b"])
@pytest.mark.parametrize(("size", "width", "layers", "heads", "concept_layer", "rate", "windows"), SIZES)
def test_paper_sizes(
    budget: str, size: str, width: int, layers: int, heads: int, concept_layer: int, rate: float, windows: int
) -> None:
    """Shapes and parameters by closed form; steps are the whole number closest to the tokens of the budget."""
    _, run, rows = paper(f"{size}-{budget}")
    ntp, cocomix = gpt2_parameters(width, layers), gpt2_parameters(width, layers) + concept_parameters(width)
    assert rows["ntp"]["parameters"] == ntp and rows["ntp"]["width"] == width
    assert rows["cocomix"]["parameters"] == cocomix and rows["cocomix"]["width"] == width
    if size == "69m":
        assert rows["ntp_paper"]["parameters"] == gpt2_parameters(624, 8) and rows["ntp_paper"]["width"] == 624
    step = 2 * heads  # widths are tried in steps that keep the heads' own widths even
    wide = rows["ntp_wide"]["width"]
    assert rows["ntp_wide"]["parameters"] == gpt2_parameters(wide, layers)
    nearest = min(range(width, 2 * width, step), key=lambda other: abs(gpt2_parameters(other, layers) - cocomix))
    assert wide == nearest
    student: Any = run.students["cocomix"]
    assert (student.model.layers, student.model.heads, student.concept.concept_layer) == (layers, heads, concept_layer)
    tokens, train = {"20b": 20e9, "200b": 200e9}[budget], run.students_train
    assert train.learning_rate == rate and train.batch_size == windows and run.seq_len == 1024
    assert train.steps is not None
    for steps in (train.steps - 1, train.steps + 1):
        assert abs(steps * windows * 1024 - tokens) > abs(train.steps * windows * 1024 - tokens)
    assert rows["cocomix"]["tokens"] == train.steps * windows * 1024


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_hyper_parameters(path: Path) -> None:
    """Section 1 of the paper's account: optimiser, schedule, labels, SAE, and the same layer for every mixing."""
    _, run, rows = paper(path.stem)
    train = run.students_train
    assert (train.betas, train.eps, train.weight_decay, train.grad_clip) == ((0.9, 0.95), 1e-8, 0.1, 1.0)
    assert train.warmup_fraction == 1 / 300 and train.final_lr_fraction == 0.1 and train.precision == "bf16"
    assert run.tokens.tokenizer == "gpt2" and run.teacher.pretrained == "gpt2"
    assert (run.sae.layer, run.sae.n_latents, run.sae.k) == (5, 32768, 32)
    labels = run.labels[getattr(run.students["cocomix"], "labels", "")]
    assert (labels.rule, labels.signs, labels.k) == ("reference", ("signed",), 4)
    mixes = [getattr(student, "concept", None) or getattr(student, "mix", None) for student in run.students.values()]
    layers = {mix.concept_layer for mix in mixes if mix is not None}
    assert layers == {3 if path.stem.startswith("69m") else 5}
    weights = {getattr(mix, "loss_weight", 0.1) for mix in mixes if mix is not None}
    assert weights <= {0.1, 0.0} and getattr(run.students["kd"], "kd_weight", None) == 0.1
    for row in rows.values():
        assert row["memory"]["fits_ddp"], f"{row['name']} does not fit 80 GiB"


def test_claims_have_a_recipe() -> None:
    """Claims 1 to 7 and 9 at 69M and 20B tokens, 8 in the shift, and the paper's student is what they favour."""
    config, _, _ = paper("69m-20b")
    assert [claim.id for claim in config.claims] == [1, 2, 3, 4, 5, 6, 7, 9]
    shift, run, _ = paper("69m-shift")
    assert [claim.id for claim in shift.claims] == [8]
    assert run.corpus.options["path"] == "open-web-math/open-web-math" and run.teacher.pretrained == "gpt2"
    for path in PAPER:
        assert {1, 2, 4} <= {claim.id for claim in load(path).claims} or path.stem == "69m-shift"


def test_labels_of_the_paper_take_8_bytes_a_token() -> None:
    """Four two-byte ids at each of a split's windows, in one set a rule."""
    config, _, _ = paper("69m-20b")
    setting = plan(config, NOWHERE, corpus_tokens=1_024_000)["settings"]["owt"]
    held_out = setting["corpus"]["val"] // 1024
    assert setting["disk"]["labels/reference"] == (1000 + held_out) * 1024 * 8
    assert setting["vocab_size"] == 50257 and setting["disk"]["tokens"] == 2 * sum(
        setting["corpus"][split] for split in ("train", "val", "test")
    )


def test_the_gpu_recipe_fits_half_an_hour() -> None:
    """25 minutes at a quarter of an H100's dense bf16 peak, 989 TFLOPS, on one card's memory."""
    config = load(RECIPES / "gpu" / "h100-30min.yaml")
    whole = plan(config, NOWHERE, gpus=1, peak_tflops=989, utilisation=0.25)
    assert 0 < whole["hours"] * 60 < 25
    (setting,) = whole["settings"].values()
    assert all(row["memory"]["fits_ddp"] for row in setting["variants"])


def test_the_largest_plan_is_quick_and_allocates_nothing_large(tmp_path: Path) -> None:
    """The command in a process of its own: a minute at most, less memory than its smallest student, no file made."""
    recipe = RECIPES / "paper" / "1.38b-200b.yaml"
    printed = tmp_path / "printed.txt"
    command = [sys.executable, "-m", "cocomix", "experiment", str(recipe), "--plan"]
    with printed.open("w") as stream:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, printed.read_text()
    assert usage.ru_utime + usage.ru_stime < 60  # processor seconds: another job on the machine does not count
    _, _, rows = paper("1.38b-200b")
    assert usage.ru_maxrss * 1024 < min(row["model_bytes"] for row in rows.values()) / 2
    assert "owt: OpenWebText" in printed.read_text() and list(tmp_path.iterdir()) == [printed]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("variants.cocomix.labels=missing", r"student 'cocomix' asks for labels 'missing'"),
        ("variants.cocomix.concept.concept_layer=8", r"concept_layer 8 is outside the stack of 8 blocks"),
        ("variants.ntp.modle=1", r"'students.ntp.modle' does not exist; did you mean 'model'"),
        ("base.students_train.stepps=5", r"did you mean 'steps'"),
        ("settings.sotu.variants=[ntp]", r"claim 1 asks for the variant 'cocomix' in 'sotu'"),
    ],
)
def test_a_bad_recipe_is_one_sentence(override: str, sentence: str) -> None:
    path = RECIPES / "gpu" / "h100-30min.yaml"
    with pytest.raises(CocomixError, match=sentence) as caught:
        plan(validate(ExperimentConfig, read_yaml(path, [override]), str(path)), NOWHERE)
    assert "\n" not in str(caught.value)
