"""`cocomix pack` and the demo's choice of a recipe, as far as they need no run."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cocomix.cli import app as cli_app
from cocomix.cli.app import app
from cocomix.cli.options import demo_recipe
from cocomix.pipeline import pack as packs
from cocomix.pipeline.pack import find_pack
from cocomix.utils.errors import CocomixError

RUNNER = CliRunner()


class Opened:
    """Stands in for a run, and remembers how it was opened."""

    def run_all(self) -> None: ...

    def print_summary(self) -> None: ...


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where packs that come with cocomix are looked for, empty."""
    monkeypatch.setattr(packs, "PLACES", (tmp_path,))
    return tmp_path


@pytest.mark.parametrize("pack_is_here", [False, True])
def test_the_demo_takes_the_pack_where_it_is(here: Path, monkeypatch: pytest.MonkeyPatch, pack_is_here: bool) -> None:
    if pack_is_here:
        (here / "smollm2-135m").mkdir()
        (here / "smollm2-135m" / "pack.json").write_text("{}")
    assert demo_recipe() == ("demo-pack" if pack_is_here else "demo")
    seen = []
    monkeypatch.setattr(cli_app, "open_run", lambda *given, **options: seen.append((*given, options)) or Opened())
    for arguments in ([], ["--from-scratch"], ["--tiny"], ["-c", "mine.yaml"]):
        assert RUNNER.invoke(app, ["demo", *arguments]).exit_code == 0
    folders, configs, defaults = zip(*((one[0], one[1], one[-1]["default"]) for one in seen), strict=True)
    assert list(map(str, folders)) == ["runs/demo", "runs/demo-from-scratch", "runs/tiny", "runs/demo"]
    assert [config and config.name for config in configs] == [None, "demo.yaml", "tiny.yaml", "mine.yaml"]
    assert defaults[0] == demo_recipe()
    with pytest.raises(CocomixError, match="from scratch already"):
        RUNNER.invoke(app, ["demo", "--tiny", "--from-scratch"], catch_exceptions=False)


def test_a_pack_is_found_by_folder_or_by_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "toy").mkdir()
    (here / "toy" / "pack.json").write_text("{}")
    assert find_pack("toy") == find_pack("packs/toy") == here / "toy"
    assert find_pack(str(here / "toy")) == here / "toy"
    with pytest.raises(CocomixError, match=r"there is no pack other; .* one of those that come with cocomix: toy"):
        find_pack("other")
    with pytest.raises(CocomixError, match="give its folder or a hub id"):
        find_pack("../toy")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["verify", "nowhere"], "there is no pack nowhere"),
        (["show", "."], "is no pack"),
        (["build", "nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["build", "demo", "-o", "packs/.."], "is no name of a pack"),
        (["build", "demo", "--corpus", "a/b"], "'a/b' is no name of a corpus"),
        (["build", "demo"], "a pack holds labels at the tokens of a published concept model"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CocomixError, match=sentence):
        RUNNER.invoke(app, ["pack", *words], catch_exceptions=False)
    assert not (tmp_path / "packs").exists()
