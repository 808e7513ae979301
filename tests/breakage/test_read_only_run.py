"""Reading is not writing: a finished run that nobody may write to is explored, inspected, reported and pushed (dry)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer.sessions import NameStore
from cocomix.pipeline.run import is_writable
from cocomix.utils.errors import CocomixError
from tests.helpers.read_only import obeying_modes, read_only

pytestmark = pytest.mark.slow
PROGRAM = """
import contextlib, io, json, os, sys
from pathlib import Path
from cocomix.cli.app import main

run, answers = RUN, {}
assert not os.access(run, os.W_OK)

def command(*words):
    sys.argv = ["cocomix", *words]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    answers[" ".join(words[:2])] = [code, out.getvalue()]

student = f"{run}/students/ntp/seed0/model"
command("inspect", "we must", "-r", run)
command("generate", "hello", "-r", run, "--max-new-tokens", "3")
command("report", "-r", run)
command("report", "-o", "there", "-r", run)
command("push", "--dry-run", "-r", run, "--student", "ntp")
command("perplexity", student, f"{run}/tokens/val", "--max-windows", "2")
command("evaluate", "-r", run)
command("train", "ntp", "students_train.steps=61", "-r", run)
command("name", "-r", run, "--tokens", "2000")
command("name", "--edit", "3=war", "-r", run)

from starlette.testclient import TestClient
from cocomix.explorer.app import create_app, prepare
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy

out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    catalog = ModelCatalog([Path(run)])
    prepare(catalog, name_tokens=5000)
client = TestClient(create_app(catalog, access_policy("127.0.0.1", 1, None, no_token=True)), base_url="http://127.0.0.1:1")
key = "0/cocomix/0"
answers["explore"] = [0, out.getvalue()]
listed = client.get("/api/concepts", params={"model": key, "limit": 500}).json()
answers["names"] = sum(concept["name"] is not None for concept in listed["concepts"])
answers["read"] = client.post("/api/read", json={"model": key, "text": "we must"}).status_code
rename = client.post("/api/name", json={"model": key, "concept": 2, "name": "x"})
answers["rename"] = [rename.status_code, rename.json()]
print("\\n" + json.dumps(answers))
"""


def test_a_run_that_nobody_may_write_to_is_read(tiny: Path) -> None:
    with read_only(tiny / "runs" / "tiny") as run:
        before = sorted(path.relative_to(run) for path in run.rglob("*"))
        home = run.parent / "home"
        home.mkdir()
        done = obeying_modes(PROGRAM.replace("RUN", repr(str(run))), cwd=home)
        assert done.returncode == 0, done.stderr[-3000:]
        answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
        assert (home / "there" / "report.html").exists()
    for name in ("inspect we must", "generate hello", "report -r", "report -o", "push --dry-run", "evaluate -r"):
        code, said = answers[name]
        assert code == 0 and "Traceback" not in said, (name, said)
    assert answers[f"perplexity {run}/students/ntp/seed0/model"][0] == 0
    assert "no report is written" in answers["report -r"][1] and "--output" in answers["report -r"][1]
    for name in ("train ntp", "name -r", "name --edit"):
        code, said = answers[name]
        assert code == 2 and "Traceback" not in said and "permission" in said, (name, said)
    assert "cannot be kept" in answers["explore"][1] and answers["names"] > 0 and answers["read"] == 200
    assert answers["rename"][0] == 400 and "cannot be kept" in answers["rename"][1]["error"]


def test_a_name_on_a_full_disk_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("cocomix.explorer.sessions.edit_name", full)
    with pytest.raises(CocomixError, match="the name cannot be kept: the disk is full"):
        NameStore(tmp_path, "key").edit(3, "war")


def test_where_files_can_be_made(tmp_path: Path) -> None:
    assert is_writable(tmp_path) and is_writable(tmp_path / "new" / "run") and not is_writable(Path("/proc/1"))
