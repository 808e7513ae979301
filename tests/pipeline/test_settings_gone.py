"""A run whose settings are gone: what it holds is not replaced by the demo's."""

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
