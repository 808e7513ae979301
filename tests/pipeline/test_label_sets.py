"""Stored and live labels through the pipeline: the same student, other costs; `cocomix label` under torchrun."""

import json
from pathlib import Path

import numpy as np
import pytest

import cocomix
from cocomix.labels import labelling_flops
from cocomix.pipeline.config import load_config
from cocomix.pipeline.label_stages import LabelStage
from cocomix.pipeline.run import Run, collect_results
from cocomix.utils.errors import CocomixError
from tests.helpers.distributed_programs import torchrun
from tests.helpers.labeled_tokens import contents

SMALL = (
    "corpus.every=40",
    "corpus.val_fraction=0.2",
    "corpus.test_fraction=0.2",
    "tokens.shard_tokens=20000",
    "teacher.train.steps=3",
    "sae.train.steps=3",
    "labels.live={rule: exact, signs: [absolute, helpful], k: 4, batch_size: 6, live: true}",
    "labels.exact.batch_size=6",
    "students={ntp: {objective: ntp, model: {width: 16, layers: 2, heads: 2}},"
    " stored: {objective: cocomix, labels: exact, model: &m {width: 16, layers: 2, heads: 2},"
    " concept: &c {concept_layer: 1}},"
    " live: {objective: cocomix, labels: live, sign: helpful, model: *m, concept: *c}}",
    "students_train={batch_size: 8, micro_batch_size: 4, steps: 3, n_evals: 1, learning_rate: 0.01}",
    "evaluation.windows=20",
)


def opened(folder: Path, *more: str) -> Run:
    recipe = Path(cocomix.__file__).parent / "recipes" / "tiny.yaml"
    return Run(folder, load_config(recipe, [*SMALL, *more]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything done but the report."""
    made = opened(tmp_path_factory.mktemp("run"))
    for stage in [*made.shared(), *made.students, *made.evaluations]:
        made.do(stage, stage.name)
    return made


def test_a_student_with_live_labels_is_the_one_with_stored_labels(run: Run) -> None:
    folders = [run.folder / f"students/{name}/seed0/model" for name in ("stored", "live")]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1
    recalls = [stage.figures["recall"] for stage in run.evaluations if stage.student.student != "ntp"]
    assert recalls[0] == recalls[1] and recalls[0]["positions"] > 0
    assert not (run.folder / "labels" / "live").exists()


def test_a_vector_is_replaced_when_a_student_is_evaluated(run: Run) -> None:
    ntp, stored, live = (stage.figures for stage in run.evaluations)
    assert "channel" not in ntp and stored["channel"] == live["channel"]
    assert stored["channel"]["windows"] == 10  # half of those measured
    assert all(variant["difference"] for variant in stored["channel"]["variants"].values())
    results = collect_results(run, {})
    assert [student["runs"][0]["channel"] for student in results["students"]] == [
        None,
        stored["channel"],
        stored["channel"],
    ]
    assert [student["mixes_vector"] for student in results["students"]] == [False, True, True]
    assert all(stage.done() for stage in opened(run.folder).evaluations)
    assert not any(stage.done() for stage in opened(run.folder, "evaluation.channel_windows=4").evaluations)


def test_live_labels_are_part_of_what_training_costs(run: Run) -> None:
    stored, live = (stage.figures for stage in run.students if stage.student != "ntp")
    teacher, sae = run.teacher.model(), run.sae.model()
    each = labelling_flops(teacher.config, n_latents=sae.n_latents, k=sae.k, layer=1, rule="exact", seq_len=64)
    # Steps of 8 windows are labelled in two passes of 6.
    assert live["flops_per_token"] == pytest.approx(stored["flops_per_token"] + each * 12 / 8)
    assert live["curve"][-1]["flops"] == live["flops"] == pytest.approx(live["flops_per_token"] * live["tokens"])
    results = collect_results(run, {})
    charged = {student["name"]: student["runs"][0]["label_flops"] for student in results["students"]}
    assert charged["stored"] > 0 and charged["live"] == charged["ntp"] == 0
    assert [label["name"] for label in results["labels"]] == ["exact"]
    assert any("labels of live were made during training" in note for note in results["notes"])


def test_a_changed_live_set_outdates_its_student_alone(run: Run) -> None:
    changed = opened(run.folder, "labels.live.k=3")
    assert {stage.student: stage.done() for stage in changed.students} == {"ntp": True, "stored": True, "live": False}
    more = opened(run.folder, "labels.live.signs=[helpful]")  # as many signs as one likes
    assert all(stage.done() for stage in more.students)


def test_live_labels_have_nothing_to_write(run: Run) -> None:
    assert run.label_stages(None) == ["labels/exact"]
    with pytest.raises(CocomixError, match=r"labels\.live\.live=false"):
        run.label_stages("live")
    with pytest.raises(CocomixError, match="no labels called 'nothing'"):
        run.label_stages("nothing")
    with pytest.raises(CocomixError, match="scores"):
        opened(run.folder, "labels.live.scores=true")


PROBED = (
    "labels.hash={rule: hash}",
    "labels.random={rule: random, of: exact}",
    "predictability={tokens: 1024, positions: 2048, val_windows: 8}",
    "students.scheduled={objective: cocomix, model: {width: 16, layers: 2, heads: 2}, concept: {concept_layer: 1},"
    " label_weights: predictability, labels: [{set: hash, until: 0.4}, {set: exact}, {set: hash, share: 3}]}",
)


def test_predictability_is_measured_kept_said_and_used(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    probed = opened(run.folder, *PROBED)
    stages = probed.measure_predictability(None)
    names = ["live/absolute", "live/helpful", "exact/helpful", "hash", "random/helpful"]
    assert sorted(stage.label_name for stage in stages) == sorted(names)
    found = {stage.label_name: stage for stage in stages}
    figures = {name: stage.figures for name, stage in found.items()}
    assert figures["exact/helpful"]["cross_entropy"] == figures["live/helpful"]["cross_entropy"]  # the same labels
    assert figures["random/helpful"]["nats"] < 0.1
    assert "under predictability.threshold 0.1" in found["random/helpful"].sentence()[0]
    hashed = figures["hash"]["cross_entropy"]
    assert hashed["given_token"] < hashed["marginal"] - 1  # there is nothing else to know of them
    assert figures["hash"]["interval"][0] <= figures["hash"]["nats"] <= figures["hash"]["interval"][1]
    assert len(list((run.folder / "probe_students").glob("*/stage.json"))) == 1
    assert run.stages.keys() < probed.stages.keys() and "predictability/hash" in probed.stages

    (student,) = (stage for stage in probed.students if stage.student == "scheduled")
    capsys.readouterr()
    trained = probed.do(student, student.name)
    said = capsys.readouterr().out
    assert "labels hash: " in said and "labels exact/helpful: " in said and "nats a label above the marginal" in said
    assert trained["label_predictability"].keys() == {"hash", "exact/helpful"}
    labels = student.batches().labels
    assert labels is not None and labels.n_labels == 4
    labels.begin_step(0, 3)
    ids = labels.read(np.arange(6), 64)
    weights = labels.weights(np.arange(6), ids)
    assert weights is not None and np.array_equal(weights[ids >= 0], found["hash"].weights()[ids[ids >= 0]])
    assert student.labels is not None and student.labels.made_once() == run.labels["exact"].made_once()
    assert not student.uses_sae_concepts
    described = "hash until 40%, then exact (25%) and hash (75%) by window"
    assert student.labels.describe_labels("") == described and described in student.config.describe()


def test_of_unknown_predictability_the_command_is_said(run: Run) -> None:
    stored = next(stage for stage in opened(run.folder, "predictability.tokens=3000").students if stage.labels)
    assert "cocomix label --predictability --name exact" in stored.probes[0].sentence()[0]
    with pytest.raises(CocomixError, match="no labels called 'nothing'"):
        run.measure_predictability("nothing")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("students.stored.labels=[{set: exact, until: 0.3}, {set: tapir}]",), "asks for labels 'tapir'"),
        (("students.stored.labels=[{set: exact}, {set: live}]",), r"set labels\.live\.live=false"),
        (("students.stored.labels=[{set: exact, sign: signed}]",), "asks for the sign 'signed'"),
        (("students.stored.labels=[{set: exact, untill: 0.4}]",), "did you mean 'until'"),
        (("labels.random={rule: random, of: tapir}",), "choose one of exact, live"),
        (("labels.hash={rule: hash, k: 200}",), "only 128 latents"),
        (
            ("labels.hash={rule: hash, k: 2}", "students.stored.labels=[{set: exact}, {set: hash}]"),
            r"differ in k \(exact 4, hash 2\)",
        ),
    ],
)
def test_label_sets_that_do_not_fit_are_refused(tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        opened(tmp_path, *overrides)


@pytest.mark.long
def test_two_processes_on_the_command_line_redo_an_old_folder(run: Run) -> None:
    labels = run.folder / "labels" / "exact"
    before = contents(labels)
    assert len(before) > 3
    record = json.loads((labels / "stage.json").read_text())
    earlier = {key: value for key, value in record.items() if key not in {"files", "seal"}}
    (labels / "stage.json").write_text(json.dumps(earlier | {"fingerprint": "an earlier version's"}))
    (labels / "train" / "helpful" / "ids.bin").write_bytes(b"its format")
    done = torchrun(2, "-m", "cocomix", "label", "--name", "exact", "-r", str(run.folder))
    assert done.stdout.count("positions labelled: helpful") == 1
    assert contents(labels) == before
    stage = run.labels["exact"]
    assert isinstance(stage, LabelStage) and stage.done()
