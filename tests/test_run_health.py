"""The doctor on runs that are damaged, unfinished, or made with other settings."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cocomix.data import TokenShards
from cocomix.doctor import Finding, State, check_run, examine
from cocomix.pipeline.trained import existing_run
from tests.helpers.command import cocomix

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny / "runs" / "tiny", tmp_path / "run"))


def health(run: Path) -> dict[str, Finding]:
    return {one.subject: one for one in check_run(run, run)}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def test_a_whole_run_is_fine(run: Path) -> None:
    found = health(run)
    assert {one.state for one in found.values()} == {State.FINE}
    assert set(found) == {"config", *existing_run(run).stages}


DAMAGE: dict[str, tuple[str, str, Callable[[Path], None], str]] = {
    "a bit of the corpus": ("corpus", "corpus/text/train/00000.jsonl", flip, "altered"),
    "a missing corpus file": ("corpus", "corpus/text/val/00000.jsonl", Path.unlink, "missing"),
    "a bit of the tokens": ("tokens", "tokens/val/*.bin", flip, "altered"),
    "a cut token file": ("tokens", "tokens/test/*.bin", truncate, "truncated"),
    "a bit of the labels": ("labels/exact", "labels/exact/train/helpful/ids-00000.bin", flip, "altered"),
    "a cut teacher": ("teacher", "teacher/model/model.safetensors", truncate, "truncated"),
    "a cut autoencoder": ("sae", "sae/model/sae.safetensors", truncate, "truncated"),
    "a student without weights": (
        "students/ntp/seed0",
        "students/ntp/seed0/model/model.safetensors",
        Path.unlink,
        "missing",
    ),
    "a bit of a teacher": ("teacher", "teacher/model/model.safetensors", flip, "altered"),
    "a cut student": (
        "students/cocomix/seed0",
        "students/cocomix/seed0/model/model.safetensors",
        truncate,
        "truncated",
    ),
    "a garbled record": ("students/ntp/seed0", "students/ntp/seed0/stage.json", truncate, "cannot be read"),
    "a missing output": ("students/ntp/seed0", "students/ntp/seed0/model/config.json", Path.unlink, "is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_where_it_is(run: Path, name: str) -> None:
    stage, place, damage, word = DAMAGE[name]
    (path,) = run.glob(place)
    damage(path)
    found = health(run)
    assert found[stage].state is State.FIX and word in found[stage].detail, found[stage]
    assert re.search(r"run `cocomix \w+", found[stage].fix), found[stage]
    assert found["config"].state is State.FINE


def test_a_changed_teacher_shows_in_the_labels_that_were_made_with_it(run: Path) -> None:
    flip(run / "teacher/model/model.safetensors")
    found = health(run)
    assert found["labels/exact"].state is State.FIX and "another teacher" in found["labels/exact"].detail
    assert found["corpus"].state is found["tokens"].state is State.FINE


def test_damage_that_the_note_of_verified_files_hides_is_found(run: Path) -> None:
    path, note = run / "tokens/val/shard-00000.bin", run / "tokens/val/verified.json"
    flip(path)
    said, now = json.loads(note.read_text()), path.stat()
    said[path.name] |= {"mtime_ns": now.st_mtime_ns, "ctime_ns": now.st_ctime_ns, "inode": now.st_ino}
    note.write_text(json.dumps(said))
    TokenShards.open(path.parent)  # taken for whole, as from a disk that returns other bytes than were written
    assert health(run)["tokens"].state is State.FIX


def test_a_bad_config_is_said_in_one_sentence(run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seq_len:", "seq_lne:"))
    (one,) = [one for one in examine(run, run) if one.subject == "run"]
    assert one.state is State.FIX and "has lost seq_len" in one.detail and ".config.json" in one.fix
    (run / ".config.json").unlink()
    (one,) = [one for one in examine(run, run) if one.subject == "run"]
    assert one.state is State.FIX and "seq_lne" in one.detail and "did you mean" in one.fix
    (one,) = [one for one in examine(run, tmp_path / "nowhere") if one.subject == "run"]
    assert one.state is State.FIX and "no run" in one.detail and "--run" in one.fix


def test_unfinished_and_outdated_stages_are_notes(run: Path) -> None:
    shutil.rmtree(run / "evaluation/ntp")
    shutil.rmtree(run / "students/ntp")
    (run / ".partial/students--ntp--seed0-0123456789ab").mkdir(parents=True)
    config = run / "config.yaml"
    config.write_text(re.sub(r"(mixer: interleave)", "mixer: add", config.read_text()))
    found = health(run)
    assert found["students/ntp/seed0"] == Finding(
        State.NOTE, "students/ntp/seed0", "begun, not finished", f"`cocomix train ntp --run {run}` resumes it"
    )
    assert found["evaluation/ntp/seed0"].detail == "not done yet"
    assert found["config"].state is State.NOTE and "concept.mixer interleave -> add" in found["config"].detail
    assert "students/cocomix/seed0" in found["config"].fix and "corpus" not in found["config"].fix
    assert "other settings" in found["students/cocomix/seed0"].detail
    assert not any(one.state is State.FIX for one in found.values())


def test_the_command_on_a_run(run: Path, tmp_path: Path) -> None:
    truncate(run / "sae/model/sae.safetensors")
    done = cocomix("doctor", "--run", "run", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    flat = " ".join(done.stdout.split())
    assert "✗ sae" in flat and "✓ corpus" in flat and "to fix." in flat
