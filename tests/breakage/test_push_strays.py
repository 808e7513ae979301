"""What leaves the machine: the files that training wrote, listed first, and no path, user name or password."""

import json
import shutil
from pathlib import Path

import pytest

from cocomix.hub import public, push_student
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused

pytestmark = pytest.mark.slow
WRITTEN = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Run:
    folder = tmp_path / "run"
    shutil.copytree(tiny / "runs" / "tiny", folder)
    return Run(folder, load_config(folder / "config.yaml"))


def test_what_lies_beside_the_model_stays_here(run: Run, tmp_path: Path) -> None:
    model = run.folder / "students/ntp/seed0/model"
    for name in ("credentials.json", "notes.txt", "other.safetensors", "x.py"):
        (model / name).write_text("secret")
    push_student(run, "ntp", 0, repo=None, only_stage=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", *WRITTEN]


def test_the_list_is_shown_before_anything_is_sent(tiny: Path, tmp_path: Path) -> None:
    run = str(tiny / "runs" / "tiny")
    done = cocomix("push", "-r", run, "--student", "ntp", "--dry-run", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == ["README.md", *WRITTEN] and "Would upload" in lines[-1]
    sizes = {line.split()[-1]: int(line.split()[0].replace(",", "")) for line in lines[:-1]}
    assert sizes["model.safetensors"] == (tiny / "runs/tiny/students/ntp/seed0/model/model.safetensors").stat().st_size
    assert not list(tmp_path.iterdir())
    refused(
        cocomix("push", "-r", run, "--student", "ntp", "--to", "me/it", "-o", "x", cwd=tmp_path, check=False),
        "add --dry-run",
    )


def test_the_list_comes_before_the_upload(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("cocomix.hub._upload", lambda folder, repo, private: events.append("sent") or "there")
    assert push_student(run, "ntp", 0, repo="me/it", show=lambda files: events.append(files[0].name)) == "there"
    assert events == ["README.md", "sent"]
    assert push_student(run, "ntp", 0, repo=None, dry_run=True) == "USER/ntp" and events == ["README.md", "sent"]


def test_configurations_forget_where_they_were_loaded_from(run: Run, tmp_path: Path) -> None:
    stage = next(stage for stage in run.students if stage.student == "ntp")
    path = stage.folder / "model" / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {
        "name_or_path": str(run.folder / "tokens"),
        "added_tokens_decoder": {"7": {"content": "/"}},
    }
    path.write_text(json.dumps(said))
    record = json.loads((stage.folder / "stage.json").read_text())
    push = stage.record
    record["files"] = [
        entry | ({"bytes": path.stat().st_size} if entry["file"].endswith("tokenizer_config.json") else {})
        for entry in record["files"]
    ]
    from cocomix.utils.files import sha256, write_sealed

    for entry in record["files"]:
        entry["sha256"] = sha256(stage.folder / entry["file"])
    write_sealed(stage.folder / "stage.json", {key: value for key, value in record.items() if key != "seal"})
    assert push() is not None
    push_student(run, "ntp", 0, repo=None, only_stage=tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert kept["name_or_path"] == "tokens" and kept["added_tokens_decoder"] == {"7": {"content": "/"}}
    assert kept["eos_token"] == said["eos_token"]
    assert not any(str(tmp_path) in file.read_text("utf-8", "replace") for file in (tmp_path / "out").iterdir())


def test_a_record_without_a_list_of_files_is_refused(run: Run) -> None:
    from cocomix.utils.files import write_json

    path = run.folder / "students/ntp/seed0/stage.json"
    record = json.loads(path.read_text())
    write_json(path, {key: value for key, value in record.items() if key not in ("seal", "files")})
    with pytest.raises(CocomixError, match="lists no files"):
        push_student(run, "ntp", 0, repo=None, dry_run=True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("clients/acme/t.jsonl", "t.jsonl"),
        ("acme/t.jsonl", "t.jsonl"),
        ("clients/acme/texts/", "texts"),
        ("clients/acme/*.parquet", "*.parquet"),
        ("tests/breakage", "breakage"),
        ("C:\\Users\\me\\t.txt", "t.txt"),
        ("\\\\host\\me\\t.txt", "t.txt"),
        ("file:///home/me/t.txt", "t.txt"),
        ("https://u:hf_tok@h/x", "https://h/x"),
        ("https://u:p@ss@h:8080/a/x?token=1#2", "https://h:8080/a/x"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("me:secret@host", "host"),
        ("me@host:/data/t.txt", "t.txt"),
        ("hf_abcdefghijkl", "(a token)"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("$sotu/teacher/model", "$sotu/teacher/model"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("wikitext", "wikitext"),
        (Path("a/b/c"), "c"),
        (None, None),
    ],
)
def test_what_a_card_shows_of_a_setting(value: object, shown: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert public(value) == shown
