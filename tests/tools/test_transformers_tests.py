"""Transformers' own tests are unpacked from an archive that is not trusted, and their outcomes are counted."""

import io
import tarfile
from pathlib import Path

from tools.transformers_tests import summary, unpack


def test_only_the_python_files_of_the_top_folder_are_unpacked(tmp_path: Path) -> None:
    names = ["t-1/tests/test_a.py", "t-1/tests/models/test_b.py", "t-1/src/c.py", "t-1/tests/d.txt", "../tests/e.py"]
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    unpack(tmp_path / "archive.tar.gz", tmp_path / "deep" / "out")
    files = {path.relative_to(tmp_path / "deep"): path.read_text() for path in (tmp_path / "deep").rglob("*.py")}
    assert files == {Path("out/tests/test_a.py"): names[0], Path("out/tests/e.py"): names[4]}


def test_outcomes_are_counted_by_reason() -> None:
    outcomes = {
        "A::test_x": ("passed", ""),
        "A::test_y": ("skipped", "<class 'a.b.CoCoMixModel'> has no|experts"),
        "B::test_y": ("skipped", "<class 'a.b.CoCoMixModel'> has no|experts"),
        "B::test_z": ("expected to fail", "left out"),
    }
    text = summary(outcomes)
    assert "4 tests: 1 passed, 2 skipped, 1 expected to fail, 0 failed." in text
    assert "| The model has no/experts | `test_y` |" in text and "| left out | `test_z` |" in text
    assert "**Failed**" not in text
