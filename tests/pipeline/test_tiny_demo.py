"""Every stage at toy size, run for real through the command line: `cocomix demo --tiny`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cocomix.pipeline.attempts import attempts, delete
from tests.helpers.command import cocomix, refused

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def unfinished_deleted(tiny: Path) -> Iterator[None]:
    """Others read the same run; an attempt that was refused is kept until the user deletes it."""
    yield
    delete(attempts(tiny / "runs" / "tiny"))


def test_the_report_holds_what_it_promises(tiny: Path) -> None:
    run = tiny / "runs" / "tiny"
    report = json.loads((run / "report.json").read_text())
    students = {student["name"]: student for student in report["students"]}
    assert set(students) == {"ntp", "ntp_wide", "cocomix"}
    for student in students.values():
        (one,) = student["runs"]
        assert 1 < one["test_perplexity"] < 512 and 1 < one["val_perplexity"] < 512
        assert one["curve"] and one["tokens"] == 60 * 16 * 64
    assert students["ntp"]["width"] == students["cocomix"]["width"] < students["ntp_wide"]["width"]
    close = students["ntp_wide"]["parameters"] / students["cocomix"]["parameters"]
    assert 0.85 < close < 1.15
    assert 0 <= students["cocomix"]["runs"][0]["recall"] <= 1
    page = (run / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
    assert not (run / ".partial").exists() or not any((run / ".partial").iterdir())


def test_a_second_call_redoes_nothing(tiny: Path) -> None:
    run = tiny / "runs" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("stage.json")}
    cocomix("demo", "--tiny", cwd=tiny)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("stage.json")} == before


def test_a_demo_student_reloads_in_a_process_that_only_imported_the_model(tiny: Path) -> None:
    program = (
        "import cocomix.model, sys\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "folder = sys.argv[1]\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "ids = AutoTokenizer.from_pretrained(folder)('Fellow citizens', return_tensors='pt').input_ids\n"
        "print(type(model).__name__, model.generate(ids, max_new_tokens=8, do_sample=False).shape[1] - ids.shape[1])\n"
    )
    folder = tiny / "runs/tiny/students/cocomix/seed0/model"
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["CoCoMixForCausalLM", "8"]


def test_generate_continues_a_prompt(tiny: Path) -> None:
    done = cocomix("generate", "Fellow citizens", "--run", "runs/tiny", "--max-new-tokens", "8", cwd=tiny)
    assert done.stdout.startswith("Fellow citizens")
    refused(
        cocomix("generate", "x", "--run", "runs/tiny", "--student", "../../etc", cwd=tiny, check=False), "no trained"
    )
    refused(cocomix("generate", "x", "--model", "./nowhere", cwd=tiny, check=False), "nowhere")


def test_generate_steers(tiny: Path) -> None:
    asked = ("generate", "Fellow citizens", "--run", "runs/tiny", "--max-new-tokens", "24", "--temperature", "2")
    plain = cocomix(*asked, cwd=tiny).stdout
    found = {
        text: cocomix(*asked, "--steer", text, cwd=tiny).stdout for text in ("c1=+0", "c3=+1000,c7:off", "c3=+1000@99")
    }
    assert found["c1=+0"] == plain and found["c3=+1000@99"] == plain
    assert found["c3=+1000,c7:off"].startswith("Fellow citizens") and found["c3=+1000,c7:off"] != plain
    refused(cocomix(*asked, "--steer", "c3", cwd=tiny, check=False), "the steering item 'c3' cannot be read")
    refused(cocomix(*asked, "--steer", "c99999:off", cwd=tiny, check=False), "concept 99999 is outside")
    refused(cocomix(*asked, "--student", "ntp", "--steer", "c3:off", cwd=tiny, check=False), "predicts no concepts")


def test_an_altered_manifest_of_labels_is_refused(tiny: Path) -> None:
    run = tiny / "runs" / "tiny"
    manifest = run / "labels/exact/train/helpful/manifest.json"
    good = manifest.read_bytes()
    lineage = json.loads(good)
    lineage["lineage"]["tokens"] = "0" * 64
    manifest.write_text(json.dumps(lineage))
    try:
        done = cocomix(
            "train", "cocomix", "students_train.steps=3", "--run", "runs/tiny", "--replace", cwd=tiny, check=False
        )
        refused(done, "manifest.json", "cocomix label")
    finally:
        manifest.write_bytes(good)
        cocomix("report", "--config", str(_recipe("tiny")), "--run", "runs/tiny", cwd=tiny)


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_shard_is_refused_and_nothing_is_lost(tiny: Path, damage: str) -> None:
    run = tiny / "runs" / "tiny"
    shard = next((run / "tokens" / "train").glob("*.bin"))
    good = shard.read_bytes()
    tokens = np.frombuffer(good, dtype=np.uint16).copy()
    tokens[5] ^= 1
    shard.write_bytes(tokens.tobytes() if damage == "flip" else good[:-10])
    model = run / "students/ntp/seed0/model/model.safetensors"
    before = model.read_bytes()
    try:
        done = cocomix(
            "train", "ntp", "students_train.steps=3", "--run", "runs/tiny", "--replace", cwd=tiny, check=False
        )
        refused(done, shard.name)
        assert model.read_bytes() == before
    finally:
        shard.write_bytes(good)
        cocomix("report", "--config", str(_recipe("tiny")), "--run", "runs/tiny", cwd=tiny)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("corpus", "corpus.source=folder", "corpus.options={path: nowhere}"), ("nowhere",)),
        (("corpus", "corpus.source=folder", "corpus.options={path: empty}"), ("empty",)),
        (("tokenize",), ("cocomix corpus",)),
        (("train", "nobody"), ("nobody", "teacher")),
        (("sae", "sae.k=5000"), ("5000", "larger")),
        (("demo", "sae.kk=3"), ("sae.kk", "does not exist")),
        (("demo", "--config", "absent.yaml"), ("absent.yaml",)),
        (("demo", "students.cocomix.concept.concept_layer=7"), ("outside the stack",)),
        (("report",), ("not done yet",)),
        (("corpus", "--config", "."), ("cannot be read",)),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (tmp_path / "empty").mkdir()
    refused(cocomix(*arguments, "--run", "r", cwd=tmp_path, check=False), *words)


def test_a_failing_command_leaves_the_settings_alone(tiny: Path) -> None:
    config = tiny / "runs" / "tiny" / "config.yaml"
    before = config.read_bytes()
    refused(
        cocomix("sae", "sae.pretrained=nowhere", "--run", "runs/tiny", "--replace", cwd=tiny, check=False), "nowhere"
    )
    assert config.read_bytes() == before


def test_the_mend_that_is_named_mends(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny / "runs" / "tiny", run)
    weights = run / "students/cocomix/seed0/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.rmtree(run / "evaluation")
    done = cocomix("evaluate", "--run", str(run), cwd=tmp_path, check=False)
    refused(done, f"delete {run}/students/cocomix/seed0 and run `cocomix train cocomix --run {run}`")
    shutil.rmtree(run / "students/cocomix/seed0/model")
    shutil.rmtree(run / "tokens" / "val")
    for command in (("tokenize",), ("train", "cocomix"), ("evaluate",)):
        cocomix(*command, "--run", str(run), cwd=tmp_path)


def test_generated_text_is_not_broken_into_lines(tiny: Path) -> None:
    prompt = "Fellow citizens of the Senate and of the House of Representatives: " * 2
    done = cocomix("generate", prompt, "--run", "runs/tiny", "--max-new-tokens", "1", cwd=tiny)
    assert done.stdout.startswith(prompt)


def test_a_teacher_with_another_vocabulary_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=8, n_layer=2, n_head=1)).save_pretrained(
        tmp_path / "t"
    )
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("corpus", "tokens", "config.yaml"):
        os.symlink(tiny / "runs" / "tiny" / name, copy / name)
    done = cocomix(
        "train", "teacher", f"teacher.pretrained={tmp_path / 't'}", "--run", str(copy), cwd=tmp_path, check=False
    )
    refused(done, "vocabulary of 40", "512", "tokens.tokenizer")


def _recipe(name: str) -> Path:
    import cocomix

    return Path(cocomix.__file__).parent / "recipes" / f"{name}.yaml"
