"""Every command that a refusal advises is a line that can be pasted: whole, quoted, for the run it is about."""

import ast
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.shell import Shell

ROOT = Path(__file__).parents[2]
RUN = "my run's"


class Reader:
    """Does what refusals say to delete and to run, word by word."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.pasted: list[str] = []

    def refusal(self, *words: str) -> str:
        """What a refused command says; empty where it succeeded."""
        code, _, error = self.shell.run(words)
        assert code in (0, 2), error
        return " ".join(error.split()) if code else ""

    def paste(self, refusal: str) -> None:
        """Do what a refusal says."""
        line = re.search(r"run `(cocomix [^`]*)`", refusal)
        assert line is not None, refusal
        deleted = re.search(r"delete (.*) and run `", refusal)
        if deleted is not None:
            (path,) = shlex.split(deleted[1])
            assert Path(path).exists(), refusal
            shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
        self.pasted.append(line[1])
        assert len(self.pasted) < 30, self.pasted
        self.until_done(*shlex.split(line[1])[1:])

    def until_done(self, *words: str) -> None:
        for _ in range(12):
            refusal = self.refusal(*words)
            if not refusal:
                return
            self.paste(refusal)
        raise AssertionError(self.pasted)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(Shell(tmp_path, monkeypatch))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_following_the_advice_leads_to_the_end(reader: Reader) -> None:
    """From nothing, with settings and overrides of its own; then with files damaged."""
    given = ("-r", RUN, "-c", "my settings.yaml", "corpus.every=1", "labels.exact.k=1", "title='a b'")
    reader.until_done("train", "cocomix", *given)
    assert {shlex.split(line)[1] for line in reader.pasted} == {"corpus", "tokenize", "train", "sae", "label"}
    assert all("'my settings.yaml'" in line and "labels.exact.k=1" in line for line in reader.pasted)

    run = reader.shell.home / RUN
    damages: list[tuple[Path, Callable[[Path], None], tuple[str, ...]]] = [
        (run / "tokens/train/shard-00000.bin", flip, ("train", "ntp", "-r", RUN, "students_train.steps=3")),
        (run / "teacher/model/model.safetensors", flip, ("label", "-r", RUN, "labels.exact.k=2")),
        (run / "corpus/text/train/00000.jsonl", flip, ("tokenize", "-r", RUN, "tokens.vocab_size=290")),
        (run / "labels/exact/stage.json", Path.unlink, ("train", "cocomix", "-r", RUN, "students_train.steps=3")),
    ]
    for path, damage, words in damages:
        reader.pasted.clear()
        damage(path)
        refusal = reader.refusal(*words)
        assert refusal, words
        reader.paste(refusal)
        assert reader.refusal(*words) != refusal
        assert reader.pasted and all("my run" in line for line in reader.pasted)


def test_advice_for_what_is_missing_names_the_run(reader: Reader) -> None:
    for words in (("inspect", "x", "-r", RUN), ("generate", "x", "-r", RUN), ("name", "-r", RUN), ("explore", RUN)):
        refusal = reader.refusal(*words)
        line = re.search(r"`(cocomix [^`]*)`", refusal)
        assert line is not None and shlex.split(line[1]) == ["cocomix", "demo", "--run", RUN], refusal


COMMAND = re.compile(r"`cocomix [a-z]|\bcocomix [a-z-]+ (--run|-r)\b")
KNOWN = {"src/cocomix/explorer/security.py": 1}
"""Messages that name a command that was run already."""


def test_commands_in_messages_come_from_one_place() -> None:
    """No string in the source but docstrings and help names a command to run by itself."""
    found: dict[str, int] = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if not COMMAND.search(source):
            continue
        tree = ast.parse(source)
        docstrings = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            if is_text and COMMAND.search(str(node.value)):
                name = str(file.relative_to(ROOT))
                found[name] = found.get(name, 0) + 1
    assert found == KNOWN
