"""Concept packs: built from a run, read by another, verified, and refused where they do not fit."""

from pathlib import Path

import numpy as np
import pytest

import cocomix
from cocomix.labels.store import LabelStore
from cocomix.pipeline.config import load_config
from cocomix.pipeline.pack import Pack
from cocomix.pipeline.pack_agreement import stored_labels
from cocomix.pipeline.pack_build import PackOptions, build_pack, needed_stages
from cocomix.pipeline.pack_verify import verify_pack
from cocomix.pipeline.run import Run, collect_results
from tests.data.test_byte_offsets import TOKENIZERS
from tests.helpers.made_corpora import write_jsonl
from tests.helpers.small_llamas import small_llama
from tests.pipeline.test_own_tokenizer import _texts

STUDENTS = (
    "students={ntp: {objective: ntp, model: {width: 16, layers: 2, heads: 2}},"
    " cocomix: {objective: cocomix, labels: exact, model: {width: 16, layers: 2, heads: 2},"
    " concept: {concept_layer: 1}}}"
)


def common(inputs: Path) -> list[str]:
    return [
        f"corpus={{source: jsonl, options: {{path: {inputs / 'texts.jsonl'}}}, val_fraction: 0.2, test_fraction: 0.2}}",
        "seq_len=24",
        "tokens.vocab_size=300",
        "tokens.workers=1",
        STUDENTS,
        "students_train={batch_size: 4, steps: 2, n_evals: 1, learning_rate: 0.01}",
        "evaluation={windows: 4, curve_windows: 2, sae_windows: 8, batch_size: 4}",
    ]


def from_scratch(folder: Path, inputs: Path, *more: str) -> Run:
    settings = (
        f"teacher={{pretrained: {inputs / 'teacher'}, tokenizer: own, seq_len: 32}}",
        "sae={layer: 1, n_latents: 32, k: 8, train: {batch_size: 4, steps: 3, learning_rate: 0.01, n_evals: 0}}",
        "labels={exact: {rule: exact, signs: [absolute, helpful, signed], k: 2, batch_size: 4},"
        " activation: {rule: activation, signs: [signed], k: 2, batch_size: 4}}",
    )
    return Run(folder, load_config(RECIPE, [*common(inputs), *settings, *more]))


def with_pack(folder: Path, inputs: Path, pack: Path | str, *more: str) -> Run:
    given = (f"pack={pack}", "teacher=null", "sae=null", "labels=null")
    return Run(folder, load_config(RECIPE, [*common(inputs), *given, *more]))


RECIPE = Path(cocomix.__file__).parent / "recipes" / "tiny.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_jsonl(folder / "texts.jsonl", _texts())
    small_llama(len(TOKENIZERS["large"]), positions=64).save_pretrained(folder / "teacher")
    TOKENIZERS["large"].save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Run:
    run = from_scratch(tmp_path_factory.mktemp("made"), inputs)
    for stage in [*needed_stages(run), run.tokens, run.stages["labels/exact"], run.stages["labels/activation"]]:
        run.do(stage, stage.name)
    return run


@pytest.fixture(scope="module")
def pack(made: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "toy"
    build_pack(made, folder, PackOptions("toy", licence="none"))
    return folder


@pytest.fixture(scope="module")
def used(pack: Path, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = with_pack(tmp_path_factory.mktemp("used"), inputs, pack)
    for stage in [*run.shared(), *run.students, *run.evaluations]:
        run.do(stage, stage.name)
    return run


def test_students_get_the_labels_that_were_made(made: Run, used: Run) -> None:
    assert [stage.name for stage in used.shared()] == ["corpus", "tokens", "sae", "labels/exact"]
    assert not used.teacher.done()
    for split in ("train", "val"):
        for sign in ("absolute", "helpful", "signed"):
            ours, theirs = (run.labels["exact"].reader(split, sign) for run in (used, made))
            assert isinstance(ours, LabelStore)
            windows = np.arange(ours.layout.n_windows)
            assert (ours.read(windows, 24) == theirs.read(windows, 24)).all()
    assert used.sae.figures["explained_variance"] == made.sae.figures["explained_variance"]
    results = collect_results(used, {})
    assert results["teacher"]["parameters"] == made.teacher.figures["parameters"]
    (row,) = [row for row in results["labels"] if row["sign"] == "absolute"]
    assert row["flops"] == pytest.approx(made.stages["teacher-labels/exact"].figures["flops"])


def test_a_finished_run_needs_its_pack_no_more(used: Run, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_config(used.folder / "config.yaml")
    assert settings.pack is not None and settings.pack.checksum == Pack(pack).checksum
    assert settings.labels.keys() == {"exact", "activation"}
    away = pack.with_name("away")
    pack.rename(away)
    try:
        again = Run(used.folder, load_config(used.folder / "config.yaml"))
        assert all(stage.done() for stage in [*again.shared(), *again.students, *again.evaluations])
    finally:
        away.rename(pack)


def test_the_pack_says_what_it_is(made: Run, pack: Path) -> None:
    about = Pack(pack).about
    assert about.teacher.licence == "none" and about.teacher.architecture["model_type"] == "llama"
    rounding = about.sae.rounding
    assert rounding.dtype == "float16" and rounding.positions > 0
    assert abs(rounding.explained_variance_before - rounding.explained_variance_after) < 0.01
    assert rounding.labels_changed_share.keys() == {
        "exact/signed", "exact/helpful", "exact/absolute", "activation/signed",
    }  # fmt: skip
    (corpus,) = about.corpora
    assert corpus.splits["train"].covered_share == 1
    listed = {entry["file"] for entry in about.files}
    assert listed == {str(path.relative_to(pack)) for path in pack.rglob("*") if path.is_file()} - {
        "pack.json", "verified.json",
    }  # fmt: skip


def test_verify_finds_it_sound_and_other_labels_not(
    pack: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verify_pack(str(pack), share=0.5, seed=1, folder=tmp_path / "verify")
    assert {one.name for one in found} == {"exact/signed", "exact/helpful", "exact/absolute", "activation/signed"}
    assert all(one.sound and one.agreed.positions > 100 for one in found)
    monkeypatch.setattr(
        "cocomix.pipeline.pack_verify.stored_labels",
        lambda *arguments: stored_labels(*arguments)._replace(
            ids={sign: np.where(ids >= 0, (ids + 1) % 32, ids) for sign, ids in stored_labels(*arguments).ids.items()}
        ),
    )
    assert not any(one.sound for one in verify_pack(str(pack), share=0.5, seed=1, folder=tmp_path / "verify"))
