"""Stored and live labels through the pipeline: the same student, other costs; `cocomix label` under torchrun."""

import json
from pathlib import Path

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
