"""`cocomix certificate` on a finished run: the evaluation's figures, or the same measured now."""

import json
import shutil
from pathlib import Path

import pytest

from cocomix.pipeline.certificates import certificates
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, write_sealed
from tests.helpers.command import cocomix

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny / "runs" / "tiny", tmp_path / "run"))


def test_figures_come_from_the_evaluation_or_are_measured_now(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kept,) = certificates(run)
    record = run / "evaluation" / "cocomix" / "seed0" / "stage.json"
    channel = read_json(record)["figures"]["channel"]
    assert kept["student"] == "cocomix" and kept["zero"]["difference"] == channel["variants"]["zero"]["difference"]
    assert kept["labels"] is not None and kept["hash"] is None and "measured now" not in capsys.readouterr().err
    printed = cocomix("certificate", "-r", "run", cwd=run.parent).stdout
    assert f"{channel['loss']:.4f}" in printed and "token hashes" in printed
    old = read_json(record)
    del old["figures"]["channel"]
    write_sealed(record, {key: value for key, value in old.items() if key != "sha256"})  # as earlier versions left it
    before = record.read_bytes()
    answer = cocomix("certificate", "-r", "run", "--student", "cocomix", "--json", cwd=run.parent)
    assert "cocomix, seed 0: measured now and not kept" in answer.stderr and record.read_bytes() == before
    (measured,) = json.loads(answer.stdout)
    for variant in ("zero", "shuffled", "mean", "labels"):
        assert measured[variant]["difference"] == pytest.approx(kept[variant]["difference"], abs=1e-6)


def test_what_cannot_be_certified_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="no student of this run that mixes a vector in; choose one of cocomix"):
        certificates(run, ["ntp"])
    shutil.rmtree(run / "students" / "cocomix")
    with pytest.raises(CocomixError, match="cocomix is not trained in this run; run `cocomix train cocomix "):
        certificates(run)
