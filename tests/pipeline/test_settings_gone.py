"""A run's own settings: edits are picked up and announced; where they are gone, the demo's do not replace the run."""

from pathlib import Path

import pytest

from cocomix.cli import options as cli_options
from cocomix.cli.options import open_run
from cocomix.utils.errors import CocomixError

RECIPE = Path(__file__).parents[2] / "src/cocomix/recipes/tiny.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has a corpus, and no settings."""
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"Text number {number} is not long. " * 20)
    folder = tmp_path / "run"
    open_run(folder, RECIPE, _source(tmp_path)).run_stage("corpus")
    (folder / "config.yaml").unlink()
    return folder


def _source(home: Path) -> list[str]:
    return ["corpus.source=folder", "corpus.every=1", f"corpus.options={{path: {home / 'texts'}}}"]


def test_without_its_settings_a_run_is_not_made_anew(run: Path) -> None:
    before = (run / "corpus" / "stage.json").read_bytes()
    with pytest.raises(CocomixError, match=r"corpus of other settings.*restore config\.yaml"):
        open_run(run, None, [])
    assert (run / "corpus" / "stage.json").read_bytes() == before


def test_named_settings_are_taken(run: Path) -> None:
    opened = open_run(run, RECIPE, _source(run.parent))
    assert opened.stages["corpus"].done()


def test_a_command_killed_before_it_saved_its_settings_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_options, "recipe_file", lambda name: RECIPE)
    assert open_run(run, None, _source(run.parent)).stages["corpus"].done()


def test_an_edit_is_announced_with_the_stages_to_redo(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_run(run, RECIPE, _source(run.parent)).run_stage("tokens")
    config, record = run / "config.yaml", (run / "corpus" / "stage.json").read_bytes()
    sound = config.read_text()
    edited = "# mine\n" + sound.replace("vocab_size: 512", "vocab_size: 300").replace("  k: 4\n", "  k: 3\n", 1)
    assert edited != sound
    config.write_text(edited)
    capsys.readouterr()
    opened = open_run(run, None, None, replace=True)
    said = capsys.readouterr().err
    assert "config.yaml was edited: tokens.vocab_size 512 -> 300" in said
    assert said.rstrip().endswith("to be redone: tokens")
    opened.run_stage("tokens")
    assert (run / "corpus" / "stage.json").read_bytes() == record
    assert config.read_text() == edited
    capsys.readouterr()
    open_run(run, None, None)
    assert capsys.readouterr().err == ""
    config.write_text(edited.replace("curve_windows: ", "curve_windows: 1"))
    open_run(run, None, ["sae.k=3"])
    said = capsys.readouterr().err
    assert "evaluation.curve_windows" in said and "sae.k" not in said and "no finished stage depends on it" in said


def test_an_edit_stays_announced_until_a_stage_was_done_with_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_run(run, RECIPE, _source(run.parent)).run_stage("corpus")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"path: {run.parent / 'texts'}", "path: nowhere"))
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(CocomixError, match="nowhere"):
            open_run(run, None, None, replace=True).run_stage("corpus")
        assert "corpus.options.path" in capsys.readouterr().err
    assert (run / "corpus" / "text").exists()
