"""Concept packs: built from a run, read by another, verified, and refused where they do not fit."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cocomix
from cocomix.cli.options import recipe_file
from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid, collect
from cocomix.labels.labeller import ConceptLabeller
from cocomix.labels.store import LabelStore
from cocomix.pipeline.config import load_config
from cocomix.pipeline.pack import Pack
from cocomix.pipeline.pack_agreement import stored_labels
from cocomix.pipeline.pack_build import PackOptions, build_pack, needed_stages, pack_sources
from cocomix.pipeline.pack_verify import verify_pack
from cocomix.pipeline.retrofit import retrofit_overrides, run_retrofit
from cocomix.pipeline.run import Run, collect_results
from cocomix.pipeline.trained import has_teacher_labels, teacher_labels
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256, write_sealed
from cocomix.utils.settings import read_yaml, validate
from tests.helpers.made_corpora import write_jsonl
from tests.helpers.own_tokenizer import awkward_texts, student_settings, write_inputs


def common(inputs: Path) -> list[str]:
    return [
        *student_settings(inputs),
        *EVALUATION,
    ]


EVALUATION = ("evaluation={windows: 4, curve_windows: 2, sae_windows: 8, batch_size: 4, probe_positions: 0}",)


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
    return write_inputs(tmp_path_factory.mktemp("inputs"))


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
        "jsonl/exact/signed", "jsonl/exact/helpful", "jsonl/exact/absolute", "jsonl/activation/signed",
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


@pytest.mark.long
def test_a_second_corpus_is_added_and_read(
    made: Run, pack: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(pack, tmp_path / "toy"))
    write_jsonl(tmp_path / "others.jsonl", [text[::-1] for text in awkward_texts()])
    text = f"corpus.options.path={tmp_path / 'others.jsonl'}"
    given = (f"sae={{pretrained: {folder / 'sae'}, layer: 1}}", "labels={exact: {rule: exact, k: 2, batch_size: 4}}")
    shutil.copytree(made.folder / "teacher", tmp_path / "second" / "teacher")
    run = from_scratch(tmp_path / "second", inputs, text, *given)
    for stage in needed_stages(run):
        run.do(stage, stage.name)
    with pytest.raises(CocomixError, match="already; give --corpus another name"):
        build_pack(run, folder, PackOptions("toy", add=True))
    build_pack(run, folder, PackOptions("toy", add=True, corpus="reversed"))
    assert [corpus.name for corpus in Pack(folder).about.corpora] == ["jsonl", "reversed"]
    for more, path in ((text, "second"), ("seeds=[0]", "first")):
        student = with_pack(tmp_path / path / "run", inputs, folder, more, "labels={exact: {rule: exact, k: 2}}")
        for stage in student.shared():
            student.do(stage, stage.name)
    other = from_scratch(made.folder, inputs, "sae.k=7")
    with pytest.raises(CocomixError, match="not done yet"):
        build_pack(other, folder, PackOptions("toy", add=True, corpus="third"))


def test_a_text_is_labelled_once_the_teacher_is_loaded(made: Run, used: Run, tmp_path: Path) -> None:
    student = next(stage for stage in used.students if stage.labels)
    text = used.tokens.special.prompt(used.tokens.tokenizer(), awkward_texts()[0])
    assert not has_teacher_labels(student) and teacher_labels(student, text) is None
    assert used.training_stages("teacher") == ["teacher", "teacher-tokens"]
    shutil.copytree(used.folder, tmp_path / "run")
    run = Run(tmp_path / "run", used.config)
    for name in run.training_stages("teacher"):
        run.run_stage(name)
    student = next(stage for stage in run.students if stage.labels)
    found = teacher_labels(student, text)
    assert found is not None and found.valid.any()
    models = made.teacher.model(), made.sae.model()
    expected = made.labels["exact"].of_text(text, *models, student.sign)  # pyright: ignore[reportAttributeAccessIssue]
    assert (found.valid == expected.valid).all()
    assert (found.ids == expected.ids)[found.valid].float().mean() > 0.95  # but for rounding


@pytest.mark.slow
def test_a_model_is_retrofitted_with_its_concepts(pack: Path, inputs: Path, tmp_path: Path) -> None:
    def short(model: str) -> tuple[list[str], Any]:
        sizes = ("seq_len=16", "students_train.steps=3", "students_train.n_evals=1", "students_train.batch_size=4")
        overrides = retrofit_overrides(model, read_yaml(recipe_file("retrofit-pack")), "channel", str(pack))
        return overrides, load_config(recipe_file("retrofit-pack"), [*overrides, *sizes, *EVALUATION])

    overrides, config = short("teacher")
    with pytest.raises(CocomixError, match="starts as the concept model, so it reads that model's tokens; set"):
        load_config(recipe_file("retrofit-pack"), [*overrides, "tokens.tokenizer=null"])
    (stage,) = run_retrofit(Run(tmp_path / "own", config))
    student: Any = stage.student.config
    assert (student.base, student.head_from, student.labels, student.sign) == ("teacher", "sae", "exact", "helpful")
    model: Any = stage.student.model()
    ids = torch.arange(8)[None]
    assert model.config.num_concepts == 32 and model.config.concept_layer == 2
    assert stage.figures["concepts"]["concept_loss"] > 0
    assert stage.student.run_config.tokens.bos == Pack(pack).about.teacher.bos
    assert model(ids).logits.shape[-1] == stage.student.base_model().config.vocab_size

    again = retrofit_overrides("teacher", read_yaml(tmp_path / "own" / "config.yaml"))  # as when it is resumed
    assert not [one for one in again if one.startswith("pack=")]
    assert load_config(tmp_path / "own" / "config.yaml", again) == config

    other = inputs / "teacher"
    copied = shutil.copytree(other, tmp_path / "copied")
    overrides, config = short(str(copied))
    assert f"tokens.tokenizer={copied}" in overrides
    student = config.students["retrofit"]
    assert (student.base, student.head_from, student.vector_from) == (str(copied), "random", "zero")


def altered(pack: Path, folder: Path, change: Any) -> Path:
    """A copy of the pack with another `pack.json`, sealed anew."""
    shutil.copytree(pack, folder / "altered")
    path = folder / "altered" / "pack.json"
    content = json.loads(path.read_text())
    change(content)
    path.unlink()
    write_sealed(path, {key: value for key, value in content.items() if key != "seal"})
    return folder / "altered"


def text_of_another_version(content: dict[str, Any]) -> None:
    content["corpora"][0]["splits"]["train"]["text"] = "0" * 64


def partly_covered(content: dict[str, Any]) -> None:
    content["corpora"][0]["splits"]["train"]["covered_share"] = 0.4


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        (None, ["teacher={pretrained: gpt2}"], "has teacher.pretrained .*teacher and the settings have gpt2; leave"),
        (None, ["sae={layer: 2}"], "has sae.layer 1 and the settings have 2; leave sae.layer out"),
        (None, ["labels={exact: {rule: exact, k: 3}}"], "no labels of jsonl by the rule exact with k 3"),
        (None, ["labels={exact: {rule: reference, k: 2}}"], "no labels of jsonl by the rule reference"),
        (text_of_another_version, [], "has labels of other texts .* than this corpus .*; use the corpus settings"),
        (partly_covered, ["pack.least_share=0.5"], "covers 40.0% of the training text, less than the 50.0%"),
        (lambda content: content.update(format=2), [], "is of format 2 and this version of cocomix reads up to 1"),
        (lambda content: content.update(more=1), [], "the key 'more' does not exist"),
        (
            lambda content: content["corpora"][0]["splits"].update({"../x": content["corpora"][0]["splits"]["val"]}),
            [],
            "corpora.0.splits: a corpus has the splits train and val",
        ),
        (lambda content: content["corpora"][0].update(name="../x"), [], r"corpora.0.name: .* \(got '../x'\)"),
        (lambda content: content["sae"].update(k=9), [], "the autoencoder of the pack .* has other sizes than it says"),
        (
            lambda content: content["corpora"][0]["splits"]["train"].update(tokens=1 << 39),
            [],
            "has more tokens than its text allows",
        ),
        (lambda content: content["files"][0].update(file="../x"), [], "outside the folder"),
    ],
)
def test_a_pack_that_does_not_fit_is_one_sentence(
    pack: Path, inputs: Path, used: Run, tmp_path: Path, change: Any, more: list[str], words: str
) -> None:
    other = pack if change is None else altered(pack, tmp_path, change)
    for name in ("corpus", "tokens"):
        shutil.copytree(used.folder / name, tmp_path / "run" / name)
    with pytest.raises(CocomixError, match=words):
        run = with_pack(tmp_path / "run", inputs, f"{{source: {other}}}", *more)
        for stage in run.shared():
            run.do(stage, stage.name)


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("sae/sae.safetensors", lambda path: path.unlink(), "is missing or truncated"),
        ("labels/jsonl/train/exact.xz", lambda path: path.write_bytes(path.read_bytes()[:-9]), "missing or truncated"),
        ("labels/jsonl/val/ends.xz", lambda path: flip(path), "was altered"),
        ("pack.json", lambda path: path.write_text(path.read_text()[:-30]), "is damaged"),
        ("pack.json", lambda path: path.write_text(path.read_text().replace("toy", "tot")), "it was altered"),
        ("pack.json", lambda path: path.write_text(" " * (1 << 23)), "more than 4,194,304 bytes"),
        ("pack.json", lambda path: path.unlink(), "is no pack"),
    ],
)
def test_a_damaged_pack_is_one_sentence(
    pack: Path, inputs: Path, used: Run, tmp_path: Path, name: str, spoil: Any, words: str
) -> None:
    other = Path(shutil.copytree(pack, tmp_path / "pack", ignore=shutil.ignore_patterns("verified.json")))
    spoil(other / name)
    for stage in ("corpus", "tokens"):
        shutil.copytree(used.folder / stage, tmp_path / "run" / stage)
    with pytest.raises(CocomixError, match=words):
        run = with_pack(tmp_path / "run", inputs, other)
        for stage in run.shared():
            run.do(stage, stage.name)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_another_pack_in_the_place_of_a_runs_is_refused(pack: Path, inputs: Path, tmp_path: Path, used: Run) -> None:
    other = altered(pack, tmp_path, lambda content: content.update(title="another"))
    config = used.config.pack
    assert config is not None
    run = with_pack(tmp_path / "run", inputs, f"{{source: {pack}}}")
    moved = run.config.model_copy(update={"pack": config.model_copy(update={"source": str(other)})})
    again = Run(tmp_path / "run", moved)
    with pytest.raises(CocomixError, match="is not the one that this run's settings were made with"):
        again.do(again.sae, "sae")


def test_another_teacher_is_refused_when_it_is_loaded(pack: Path, inputs: Path, tmp_path: Path) -> None:
    other = altered(pack, tmp_path, lambda content: content["teacher"].update(checksum="0" * 64))
    run = with_pack(tmp_path / "run", inputs, other)
    with pytest.raises(CocomixError, match="has other weights than that of the pack"):
        run.do(run.teacher, "teacher")


def test_what_a_part_of_the_windows_does_not_cover_is_masked(
    made: Run, inputs: Path, used: Run, tmp_path: Path
) -> None:
    part = build_pack(made, tmp_path / "part", PackOptions("part", windows=6))
    share = part.about.corpora[0].splits["train"].covered_share
    assert 0.1 < share < 0.9
    for name in ("corpus", "tokens"):
        shutil.copytree(used.folder / name, tmp_path / "run" / name)
    run = with_pack(tmp_path / "run", inputs, tmp_path / "part")
    for stage in run.shared():
        run.do(stage, stage.name)
    few, all_ = (one.labels["exact"].reader("train", "helpful") for one in (run, used))
    assert isinstance(few, LabelStore) and isinstance(all_, LabelStore)
    ours, theirs = (reader.read(np.arange(few.layout.n_windows), 24) for reader in (few, all_))
    labelled = ours[..., 0] >= 0
    assert (ours[labelled] == theirs[labelled]).all()
    assert 0 < labelled.sum() < (theirs[..., 0] >= 0).sum()
    assert f"covers {share:.1%}" in run.stages["labels/exact"].describe(run.stages["labels/exact"].figures)
    assert part.about.corpora[0].labels[0].flops < made.stages["teacher-labels/exact"].figures["flops"]


def test_labels_that_are_still_being_made_go_in_as_far_as_they_are(
    made: Run, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("corpus", "teacher", "teacher-tokens", "sae"):
        shutil.copytree(made.folder / name, tmp_path / "run" / name)
    sets = "labels={exact: {rule: activation, k: 2, batch_size: 5, signs: [signed]}}"
    run, make = from_scratch(tmp_path / "run", inputs, sets), ConceptLabeller.make
    labels = run.stages["teacher-labels/exact"]
    held_out = made.stages["teacher-labels/exact"].windows("val")  # type: ignore[attr-defined]
    passes = iter(range(-(-held_out.n_windows(held_out.seq_len) // 5) + 4))

    def some_passes(*arguments: Any) -> Any:
        if next(passes, None) is None:
            raise KeyboardInterrupt
        return make(*arguments)

    with pytest.raises(CocomixError, match="no window is labelled yet; run `cocomix label --name exact"):
        build_pack(run, tmp_path / "none", PackOptions("none"))
    monkeypatch.setattr(ConceptLabeller, "make", some_passes)
    with pytest.raises(KeyboardInterrupt):
        run.do(labels, "labels")
    monkeypatch.undo()
    splits = build_pack(run, tmp_path / "part", PackOptions("part")).about.corpora[0].splits
    assert 10 <= splits["train"].labelled_windows <= 20 < splits["train"].windows
    assert 0 < splits["train"].covered_share < splits["val"].covered_share == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.long
def test_a_pack_of_another_layer(made: Run, inputs: Path, tmp_path: Path) -> None:
    def opened(*labels: str) -> Run:
        layers = {"exact": "null", "below": "0"}
        section = "{{rule: activation, signs: [signed], k: 2, batch_size: 4, layer: {}}}"
        sets = ", ".join(f"{name}: {section.format(layers[name])}" for name in labels)
        return from_scratch(tmp_path / "run", inputs, "sae.also=[0]", f"labels={{{sets}}}")

    run = opened("exact", "below")
    assert [[one.name for one in pack_sources(run, layer)] for layer in (None, 0)] == [
        ["teacher-labels/exact"],
        ["teacher-labels/below"],
    ]
    with pytest.raises(CocomixError, match=r"no labels are of the autoencoder of block 0; set labels\.NAME\.layer=0"):
        pack_sources(opened("exact"), 0)
    for name in ("corpus", "teacher", "teacher-tokens"):
        shutil.copytree(made.folder / name, run.folder / name)
    for stage in needed_stages(run, 0):
        run.do(stage, stage.name)
    about = build_pack(run, tmp_path / "pack", PackOptions("below", layer=0)).about
    assert about.sae.layer == 0 and [labels.name for labels in about.corpora[0].labels] == ["below"]
    assert about.sae.figures["explained_variance"] == run.sae.of_layer(0).figures["explained_variance"]
    found = verify_pack(str(tmp_path / "pack"), share=1.0, seed=0, folder=tmp_path / "verify")
    assert found and all(one.sound for one in found)


def test_a_pack_of_the_hub_is_read_from_the_hubs_own_cache(
    pack: Path, inputs: Path, used: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot there is a folder of links to files named by their checksums, outside it."""
    repository = tmp_path / "hub" / "models--somebody--toy"
    snapshot = repository / "snapshots" / ("0" * 40)
    for file in (path for path in pack.rglob("*") if path.is_file()):
        blob = repository / "blobs" / sha256(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(pack)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("corpus", "tokens"):
        shutil.copytree(used.folder / name, tmp_path / "run" / name)
    run = with_pack(tmp_path / "run", inputs, "somebody/toy")
    for stage in run.shared():
        run.do(stage, stage.name)
    ours, theirs = (each.labels["exact"].reader("train", "absolute") for each in (run, used))
    assert isinstance(ours, LabelStore)
    windows = np.arange(ours.layout.n_windows)
    assert (ours.read(windows, 24) == theirs.read(windows, 24)).all()
    with pytest.raises(CocomixError, match="cannot be downloaded from the hub"):
        with_pack(tmp_path / "other", inputs, "somebody/else")


def test_an_experiment_takes_its_labels_from_a_pack(pack: Path, inputs: Path, tmp_path: Path) -> None:
    base = read_yaml(RECIPE, [*common(inputs), f"pack={pack}", "teacher=null", "sae=null", "labels=null"])
    shape, concept = {"width": 16, "layers": 2, "heads": 2}, {"concept_layer": 1}
    labels = {"exact": {"rule": "exact", "signs": ["absolute", "helpful", "signed"], "k": 2, "batch_size": 4}}
    base["labels"] = labels | {"random": {"rule": "random", "of": "exact"}, "hash": {"rule": "hash", "k": 2}}
    student = {"objective": "cocomix", "model": shape, "concept": concept}
    variants = {
        "ntp": {"objective": "ntp", "model": shape},
        "cocomix": student | {"labels": "exact", "sign": "absolute"},
        "random": student | {"labels": "random", "sign": "absolute"},
        "hash": student | {"labels": "hash"},
    }
    base = {name: value for name, value in base.items() if name not in ("students", "seeds", "title", "baseline")}
    raw = {"title": "t", "seeds": [0], "base": base, "variants": variants, "settings": {"one": {"title": "one"}}}
    grid = Grid(validate(ExperimentConfig, raw, "the recipe"), tmp_path)
    for one in grid.rounds():
        for job in one.jobs:
            for stage in job:
                grid.run_stage(stage)
    run = grid.runs["one"]
    assert not run.teacher.done() and not any(
        name.startswith("teacher-labels") for name in run.stages if run.stages[name].done()
    )
    found = collect(grid)["settings"]["one"]
    rows = {row["name"]: row["runs"][0] for row in found["students"]}
    assert rows.keys() == variants.keys() and found["label_readers"]["labels/exact"] == 2
    assert rows["cocomix"]["label_flops"] > 0 and not rows["ntp"]["label_flops"] and not rows["hash"]["label_flops"]
