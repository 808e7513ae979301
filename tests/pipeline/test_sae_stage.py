"""The autoencoder's stage from the command line: its page, export, and loading what another library trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.pipeline.config import load_config
from cocomix.pipeline.label_stages import LabelStage
from cocomix.pipeline.run import Run
from cocomix.pipeline.trained import export_sae
from cocomix.sae import TopKSAE
from cocomix.sae.positions import LeftOut
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, and its autoencoder as SAELens has it."""
    folder = tmp_path_factory.mktemp("sae")
    shutil.copytree(tiny / "runs" / "tiny", folder / "run")
    cocomix("export-sae", "--run", "run", "--format", "saelens", "--output", "saelens", cwd=folder)
    return folder


def figures(home: Path) -> dict:
    return json.loads((home / "run/sae/stage.json").read_text())["figures"]


def quality_page(home: Path) -> str:
    return (home / "run/sae/quality.html").read_text()


def opened(home: Path) -> Run:
    return Run(home / "run", load_config(home / "run/config.yaml"))


def test_the_page_and_the_figures_of_a_trained_one(home: Path) -> None:
    found = figures(home)
    assert f"{found['loss_recovered']:.4f}" in (home / "run/sae/quality.html").read_text()
    assert found["loss_plain"] < found["loss_sae"] < found["loss_zero"]
    assert sum(found["density"]["latents"]) == round(128 * (1 - found["dead_share"]))


def test_an_export_comes_back_as_it_went(home: Path) -> None:
    before = figures(home)
    cocomix("sae", "sae.pretrained=saelens", "sae.k=5", "--run", "run", "--replace", cwd=home)
    after = figures(home)
    assert after["k"] == before["k"] and after["format"] == "saelens" and after["hook"] == "blocks.1.hook_resid_post"
    assert abs(after["explained_variance"] - before["explained_variance"]) < 1e-6
    about = json.loads((home / "run/sae/model/sae.json").read_text())["about"]
    assert about["source"] == "saelens" and about["layer"] == 1


def test_one_without_a_k_of_its_own_takes_the_configured_one_down_to_the_student(home: Path) -> None:
    folder = shutil.copytree(home / "saelens", home / "jumprelu")
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"threshold": torch.full((128,), 0.05)}, folder / "sae_weights.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"architecture": "jumprelu"}))
    cocomix("sae", "sae.pretrained=jumprelu", "sae.k=6", "--run", "run", "--replace", cwd=home)
    sae = TopKSAE.from_pretrained(home / "run/sae/model")
    assert sae.k == 6 and sae.activation.kind == "jumprelu" and figures(home)["l0"] <= 6
    run = opened(home)
    student = next(stage for stage in run.students if stage.student == "cocomix").objective().evaluated().config
    assert (student.num_concepts, student.concept_top_k) == (128, 6)


def test_what_does_not_fit_is_refused(home: Path) -> None:
    for name, output, words in (
        ("saelens", "saelens", "is not empty"),
        ("odd", "new", "no SAE format 'odd'"),
        ("openai", "new", "cannot be written"),
    ):
        with pytest.raises(CocomixError, match=words):
            export_sae(opened(home), name, home / output)
    wrong = cocomix("sae", "sae.pretrained=saelens", "sae.layer=2", "--run", "run", "--replace", cwd=home, check=False)
    refused(wrong, "output of block 1", "set sae.layer=1")


def test_what_is_left_out_follows_the_teacher_and_an_old_fingerprint_does_not_change(home: Path) -> None:
    old = opened(home)
    with_settings = Run(home / "run", load_config(home / "run/config.yaml", ["sae.skip_first=0", "sae.skip_norm=20"]))
    pretrained = Run(home / "run", load_config(home / "run/config.yaml", ["teacher.pretrained=gpt2"]))
    assert not {"skip_first", "skip_norm"} & set(old.sae.settings()) and not old.sae.skips
    assert with_settings.sae.settings() == old.sae.settings() | {"skip_first": 0, "skip_norm": 20.0}
    assert not old.teacher.published and pretrained.teacher.published
    for run, expected in ((old, LeftOut()), (with_settings, LeftOut(0, 20.0)), (pretrained, LeftOut(1))):
        assert run.sae.to_leave_out() == expected


def test_positions_left_out_are_in_no_figure_and_have_no_label(home: Path) -> None:
    run = Run(home / "run", load_config(home / "run/config.yaml", ["sae.pretrained=saelens", "sae.skip_first=3"]))
    before = figures(home)
    run.sae.config = run.sae.config.model_copy(update={"pretrained": str(home / "saelens")})
    run.do(run.sae, "sae")
    after = figures(home)
    assert after["measured_tokens"] == before["measured_tokens"] * 61 // 64
    assert after["left_out_share"] == pytest.approx(3 / 64) and "first 3 of the" in quality_page(home)
    label_set = run.labels["exact"]
    valid = label_set.labeller(("helpful",))(torch.randint(0, 500, (2, 64)))["helpful"].valid
    assert not valid[:, :3].any() and valid[:, 3:].any()
    assert isinstance(label_set, LabelStage) and label_set.lineage("val")["skip_first"] == 3


def test_an_autoencoder_with_thresholds_goes_from_training_to_labels_and_out(home: Path) -> None:
    overrides = [
        "sae.pretrained=null",
        "sae.k=8",
        "sae.kind=batch_topk",
        "sae.train.steps=20",
        "sae.skip_norm=50",
        "evaluation.sae_windows=20",
    ]
    run = Run(home / "run", load_config(home / "run/config.yaml", overrides))
    run.do(run.sae, "sae")
    found, sae = figures(home), run.sae.model()
    assert (found["k"], found["most_active"], found["kind"]) == (8, 16, "batch_topk")
    assert (sae.k, sae.activation.kind) == (16, "jumprelu") and found["l0"] <= 16
    assert set(found["probing"]["sentence ends"]) == {"k=1", "k=5", "hidden", "positions"}
    assert "sentence ends" in quality_page(home) and "at most 16 a position" in quality_page(home)
    valid = run.labels["exact"].labeller(("helpful",))(torch.randint(0, 500, (2, 64)))["helpful"].valid
    assert valid.any()
    student = next(stage for stage in run.students if stage.student == "cocomix").objective().evaluated().config
    assert (student.num_concepts, student.concept_top_k) == (128, 8)
