"""`cocomix name` and `cocomix inspect` on a finished run."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.analysis import FoundNames, Reading
from cocomix.analysis.naming import EDITED, FEWEST, FOUND, STABLE
from cocomix.labels import attribute, select_labels
from cocomix.pipeline.concept_stages import name_run
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.pipeline.trained import inspect_text
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused

pytestmark = pytest.mark.slow
TEXT = "Fellow citizens of the Senate and of the House of Representatives"


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Run:
    shutil.copytree(tiny / "runs" / "tiny", tmp_path / "run")
    return Run(tmp_path / "run", load_config(tmp_path / "run" / "config.yaml"))


def names_of(run: Run) -> FoundNames:
    return FoundNames.model_validate_json((run.folder / FOUND).read_text())


def test_names_are_kept_with_the_run_and_edits_survive(run: Run, tmp_path: Path) -> None:
    done = cocomix("name", "-r", "run", "--tokens", "20000", cwd=tmp_path)
    found = names_of(run)
    assert "concepts have a name" in done.stdout and f"{found.positions:,} tokens of the train split" in done.stdout
    assert len(found.concepts) == run.config.sae.n_latents and found.sae == run.sae.checksum()
    shards, seq_len = run.tokens.shards("train"), run.config.seq_len
    assert found.windows == min(shards.n_windows(seq_len), -(-20000 // seq_len))
    assert any(one.name for one in found.concepts) and any(one.name is None for one in found.concepts)
    for one in found.concepts:
        assert (one.name is None) == bool(one.why)
        if one.name is not None:
            assert one.stability is not None and one.stability >= STABLE and one.occurrences >= 2 * FEWEST
    edited = next(one.concept for one in found.concepts if one.name)
    done = cocomix("name", "-r", "run", "--edit", f"{edited}=what I call [it]", cwd=tmp_path)
    assert "(1 edited)" in done.stdout and "what I call [it] (edited)" in done.stdout
    before = (run.folder / EDITED).read_bytes()
    cocomix("name", "-r", "run", "--tokens", "20000", cwd=tmp_path)
    assert names_of(run) == found and (run.folder / EDITED).read_bytes() == before
    ids = run.tokens.tokenizer().encode(TEXT)
    done = cocomix("inspect", TEXT, "-r", "run", "--concept", str(edited), "--json", cwd=tmp_path)
    reading = Reading.model_validate_json(done.stdout)
    assert reading.name == "what I call [it]" and len(reading.tokens) == len(ids)
    refused(cocomix("name", "-r", "run", "--edit", "900=x", cwd=tmp_path, check=False), "--edit 900=x", "0 to 127")


def test_names_of_a_program(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "namer.py"
    script.write_text(
        "import json, sys\nc = json.load(sys.stdin)['concept']\nsys.exit('no') if c % 3 else print('n', c)\n"
    )
    command = shlex.join([sys.executable, "-S", "-E", str(script)])
    done = cocomix("name", "-r", "run", "--tokens", "4000", "--llm", command, cwd=tmp_path)
    named = {one.concept for one in names_of(run).concepts if one.source == "llm"}
    assert named and all(concept % 3 == 0 for concept in named)
    assert "ended with code 1 (no)" in done.stderr


def test_inspect_agrees_with_the_model_and_the_teacher(run: Run, tmp_path: Path) -> None:
    done = cocomix("inspect", TEXT, "-r", "run", "--top", "4", "--json", cwd=tmp_path)
    reading = Reading.model_validate_json(done.stdout)
    tokenizer = run.tokens.tokenizer()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    student = next(stage for stage in run.students if stage.student == "cocomix").model()
    with torch.no_grad():
        output = student(ids)
    teacher, sae, config = run.teacher.model(), run.sae.model(), run.config.labels["exact"]
    dense = attribute(teacher, sae, ids, layer=run.config.sae.layer, rule=config.rule, sign=config.signs[0])
    labels = select_labels(dense, config.k)
    assert "".join(one.token for one in reading.tokens) == TEXT
    agreed = []
    for place, one in enumerate(reading.tokens):
        top = output.concept_logits[0, place].topk(4)
        assert [found.concept for found in one.concepts] == top.indices.tolist()
        assert [found.logit for found in one.concepts] == pytest.approx(top.values.tolist(), rel=1e-4, abs=1e-5)
        truth = labels.ids[0, place].tolist() if labels.valid[0, place] else None
        assert one.labels == truth
        assert [found.agreed for found in one.concepts] == [
            None if truth is None else c.concept in truth for c in one.concepts
        ]
        agreed += [found.agreed for found in one.concepts]
    assert reading.tokens[-1].labels is None and {True, False} <= set(agreed)
    mean = sum(one.loss for one in reading.tokens[1:]) / (len(reading.tokens) - 1)
    assert mean == pytest.approx(student(ids, labels=ids).lm_loss.item(), rel=1e-4)


def test_inspect_prints_when_piped(run: Run, tmp_path: Path) -> None:
    for extra in ((), ("--concept", "3")):
        done = cocomix("inspect", TEXT, "-r", "run", *extra, cwd=tmp_path)
        assert "\x1b" not in done.stdout and "loss: nats of the token" in done.stdout
        assert ("without" in done.stdout) == bool(extra)
        assert "✓: the teacher's attribution agrees" in done.stdout


def test_bad_input_is_one_sentence(run: Run, tmp_path: Path) -> None:
    refused(cocomix("inspect", "x", "-r", "nowhere", cwd=tmp_path, check=False), "there is no run in nowhere")

    def no(words: str, text: str = "x", **given: Any) -> None:
        options = {"student": "cocomix", "seed": 0, "top": 3, "concept": None} | given
        with pytest.raises(CocomixError, match=re.escape(words)):
            inspect_text(run.folder, text, **options)

    no("the student ntp predicts no concepts; choose --student cocomix", student="ntp")
    no("no student 'nobody' of seed 0; choose one of", student="nobody")
    no("no student 'cocomix' of seed 7", seed=7)
    no("the text is empty", " ")
    no("64 positions; shorten it by", "word " * 200)
    no("no concept 128; the student's are 0 to 127", concept=128)
    (run.folder / FOUND).write_text(json.dumps({"concepts": 3}))
    no(f"{FOUND} is damaged")
    (run.folder / FOUND).unlink()
    shutil.rmtree(run.folder / "sae")
    with pytest.raises(CocomixError, match="run `cocomix sae --run"):
        name_run(run.folder, tokens=1000)
    with pytest.raises(CocomixError, match="there is no run in"):
        name_run(tmp_path / "nowhere", tokens=1000)


def test_a_text_can_be_read_without_teacher_or_with_one_token(run: Run) -> None:
    options: dict[str, Any] = {"student": "cocomix", "seed": 0, "top": 3, "concept": None}
    assert inspect_text(run.folder, "a", **options).tokens[0].labels is None
    with_teacher = inspect_text(run.folder, TEXT, **options)
    shutil.rmtree(run.folder / "teacher" / "model")
    without = inspect_text(run.folder, TEXT, **options)
    assert any(one.labels for one in with_teacher.tokens) and not any(one.labels for one in without.tokens)
    assert [one.loss for one in without.tokens] == [one.loss for one in with_teacher.tokens]
