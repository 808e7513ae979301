"""Where standard output is not UTF-8, commands ended in a UnicodeEncodeError for the ± and ✓ of our own wording."""

from pathlib import Path

import pytest

from tests.helpers.encoded import cocomix_in, exit_codes


@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_no_encoding_ends_a_command(tmp_path: Path, encoding: str) -> None:
    done = cocomix_in(
        encoding,
        [["doctor"], ["corpus", "-r", "ünï ±✓"], ["label", "-r", "nowhere ␣"], ["--help"]],
        cwd=tmp_path,
        home=tmp_path,
    )
    assert exit_codes(done)[1:] == [0, 2, 0], done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "ünï ±✓" / "corpus" / "stage.json").exists()
