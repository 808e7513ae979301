"""A concept model with a tokenizer of its own, through the pipeline: its stages, and what depends on what."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import cocomix
from cocomix.labels import LabelStore
from cocomix.pipeline.config import load_config
from cocomix.pipeline.label_stages import AlignedLabelStage
from cocomix.pipeline.run import Run, collect_results
from cocomix.pipeline.trained import labels_of
from cocomix.utils.errors import CocomixError
from tests.helpers.distributed_programs import torchrun
from tests.helpers.labeled_tokens import contents
from tests.helpers.own_tokenizer import awkward_texts, student_settings, write_inputs


def opened(folder: Path, inputs: Path, *more: str) -> Run:
    recipe = Path(cocomix.__file__).parent / "recipes" / "tiny.yaml"
    settings = (
        *student_settings(inputs),
        "teacher.train=null",
        f"teacher.pretrained={inputs / 'teacher'}",
        "teacher.tokenizer=own",
        "teacher.seq_len=32",
        "sae={layer: 1, n_latents: 32, k: 6, train: {batch_size: 4, steps: 3, learning_rate: 0.01, n_evals: 0}}",
        "labels.exact={rule: exact, signs: [absolute, helpful], k: 2, batch_size: 4}",
        "evaluation={windows: 4, curve_windows: 2, sae_windows: 8, batch_size: 4}",
    )
    return Run(folder, load_config(recipe, [*settings, *more]))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Run:
    made = opened(tmp_path_factory.mktemp("run"), inputs)
    for stage in [*made.shared(), *made.students, *made.evaluations]:
        made.do(stage, stage.name)
    return made


def test_students_learn_from_it_like_from_any_other(run: Run) -> None:
    assert [stage.name for stage in run.shared()] == [
        "corpus",
        "tokens",
        "teacher",
        "teacher-tokens",
        "sae",
        "teacher-labels/exact",
        "labels/exact",
    ]
    source, aligned = (run.stages[name].figures for name in ("teacher-labels/exact", "labels/exact"))
    assert source["train"]["valid_share"]["absolute"] > 0.9
    # Each token is read about twice, and all of that is charged to the students.
    assert source["train"]["tokens"] > 1.5 * source["train"]["text_tokens"]
    assert aligned["flops"] == source["flops"] > 0
    assert 0.2 < aligned["train"]["valid_share"]["absolute"] < 0.95
    (row,) = [row for row in collect_results(run, {})["labels"] if row["sign"] == "absolute"]
    assert row["valid_share"] == aligned["train"]["valid_share"]["absolute"]
    assert run.evaluations[1].figures["recall"]["positions"] > 0
    assert run.label_stages("exact") == ["teacher-labels/exact", "labels/exact"]
    assert run.training_stages("teacher") == ["teacher", "teacher-tokens"]


def test_no_label_is_of_text_the_student_has_not_read(run: Run) -> None:
    labels = run.labels["exact"]
    assert isinstance(labels, AlignedLabelStage)
    stage = next(stage for stage in run.students if stage.student == "cocomix")
    text = awkward_texts()[0]
    ids = run.tokens.special.prompt(run.tokens.tokenizer(), text)
    teacher, sae = run.teacher.model(), run.sae.model()
    whole = labels_of(stage, ids, teacher, sae)
    assert whole is not None and whole.valid.any()
    for cut in range(4, len(ids), 23):
        part = labels_of(stage, ids[:cut], teacher, sae)
        if part is None:
            continue
        both = part.valid[0] & whole.valid[0, :cut]
        both[-8:] = False  # the teacher may split the end of a text that was cut in another way
        assert (part.ids[0][both] == whole.ids[0, :cut][both]).all()


def test_other_students_tokens_redo_the_alignment_alone(run: Run, inputs: Path) -> None:
    other = opened(run.folder, inputs, "tokens.vocab_size=280")
    done = {stage.name: stage.done() for stage in other.shared()}
    assert [name for name, finished in done.items() if not finished] == ["tokens", "labels/exact"]
    longer = opened(run.folder, inputs, "seq_len=30")
    assert [stage.name for stage in longer.shared() if not stage.done()] == ["labels/exact"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("students.ntp={objective: kd, model: {width: 16, layers: 2, heads: 2}}", "objective kd.*need one tokenizer"),
        ("students.ntp={objective: kd, teacher_top_k: 4, model: {width: 16, layers: 2, heads: 2}}", "one tokenizer"),
        ("labels.exact.live=true", "cannot be live"),
        ("teacher={tokenizer: own, train: {batch_size: 4, steps: 1, learning_rate: 0.1}}", "pretrained concept model"),
        ("teacher.tokenizer=shared", "for `tokenizer: own`"),
    ],
)
def test_what_needs_one_tokenizer_is_refused_by_name(inputs: Path, tmp_path: Path, setting: str, sentence: str) -> None:
    with pytest.raises(CocomixError, match=sentence):
        opened(tmp_path, inputs, setting)


def test_steering_needs_one_tokenizer(run: Run) -> None:
    with pytest.raises(CocomixError, match="reads other tokens than the students"):
        run.teacher.must_read_tokens("judges steered texts")


def _words_alone(folder: Path, unknown: str | None) -> None:
    """A tokenizer that knows few words and gives no text back."""
    vocabulary = {"</s>": 0, "the": 1, "road": 2} | ({} if unknown is None else {unknown: 3})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **({} if unknown is None else {"unk_token": unknown})))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token=unknown).save_pretrained(folder)


def test_tokens_that_give_no_text_back_have_no_labels(run: Run, inputs: Path, tmp_path: Path) -> None:
    _words_alone(tmp_path / "words", "<unk>")
    shutil.copytree(run.folder, tmp_path / "run")
    other = opened(tmp_path / "run", inputs, f"tokens.tokenizer={tmp_path / 'words'}")
    other.do(other.tokens, "tokens")
    labels = other.labels["exact"]
    assert isinstance(labels, AlignedLabelStage)
    with pytest.raises(CocomixError, match="no position of the students' tokens has labels"):
        other.do(labels, labels.name)
    assert other.stages["teacher-labels/exact"].done()


def test_text_that_a_tokenizer_cannot_write_is_one_sentence(inputs: Path, run: Run, tmp_path: Path) -> None:
    _words_alone(tmp_path / "words", None)
    shutil.copytree(run.folder / "corpus", tmp_path / "run" / "corpus")
    other = opened(tmp_path / "run", inputs, f"tokens.tokenizer={tmp_path / 'words'}")
    with pytest.raises(CocomixError, match=r"cannot encode a text \(.*\); use one whose vocabulary covers any text"):
        other.do(other.tokens, "tokens")


SEVERAL = (
    "labels.hash={rule: hash, k: 2}",
    "labels.random={rule: random, of: exact}",
    "students.cocomix.labels=[{set: hash, until: 0.5}, {set: exact, share: 2}, {set: random}]",
    "predictability={tokens: 96, positions: 480, val_windows: 8}",
)


def test_aligned_labels_go_into_schedules_controls_and_predictability(run: Run, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    other = opened(tmp_path / "run", inputs, *SEVERAL)
    measured = {stage.label_name: stage for stage in other.measure_predictability(None)}
    assert measured.keys() == {"exact/absolute", "exact/helpful", "hash", "random/absolute", "random/helpful"}
    student = next(stage for stage in other.students if stage.labels)
    assert [stage.name for stage in other.shared() if not stage.done()] == []
    assert {"teacher-labels/exact", "labels/exact"} < {stage.name for stage in other.shared()}
    other.do(student, student.name)
    text = run.tokens.special.prompt(run.tokens.tokenizer(), awkward_texts()[0])
    models = other.teacher.model(), other.sae.model()
    plain = next(stage for stage in run.students if stage.labels)
    mixed, alone = labels_of(student, text, *models), labels_of(plain, text, *models)
    assert mixed is not None and alone is not None
    assert mixed.valid.any() and (mixed.valid == alone.valid).all()


def test_positions_left_out_and_documents(run: Run, inputs: Path, tmp_path: Path) -> None:
    for name in ("corpus", "tokens", "teacher", "teacher-tokens"):
        shutil.copytree(run.folder / name, tmp_path / "run" / name)
    more = ("context=document", "sae.skip_norm=1.05", "sae.init=data", "evaluation.probe_positions=200")
    other = opened(tmp_path / "run", inputs, *more)
    # The concept model's windows follow documents in any case.
    made = [stage.name for stage in other.shared() if not stage.done()]
    assert made == ["sae", "teacher-labels/exact", "labels/exact"]
    for name in [*made, "students/cocomix/seed0"]:
        other.do(other.stages[name], name)
    quality, whole = other.sae.figures, run.sae.figures
    assert quality["left_out_share"] > whole["left_out_share"] > 0
    assert "probing" in quality and "probing" in whole
    shares = [one.stages["teacher-labels/exact"].figures["train"]["valid_share"] for one in (run, other)]
    assert 0 < shares[1]["absolute"] < shares[0]["absolute"]


@pytest.mark.long
def test_two_processes_write_the_same_labels(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    for name in ("teacher-labels", "labels"):
        shutil.rmtree(tmp_path / "run" / name)
    torchrun(2, "-m", "cocomix", "label", "--name", "exact", "-r", str(tmp_path / "run"))
    for name in ("teacher-labels/exact", "labels/exact"):
        assert contents(tmp_path / "run" / name) == contents(run.folder / name)
    assert LabelStore.finished(tmp_path / "run" / "labels" / "exact" / "train" / "helpful")
