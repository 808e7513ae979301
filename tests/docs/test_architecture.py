"""The architecture page is that of the code: its layers are the contract's, and the files it names are there."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_layers_are_the_contracts() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (one for one in settings["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    order = [name for layer in contract["layers"] for name in re.split(r"\s*[:|]\s*", layer)]
    rows = re.findall(r"^\| ((?:`[\w./]+`(?:, )?)+) \|", section("The folders are layers"), flags=re.M)
    shown = [re.sub(r"/$|\.py$", "", name) for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    assert [name for name in order if name in shown] == shown
    package = ROOT / "src/cocomix"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert folders - {"concepts"} == {name for name in shown if (package / name).is_dir()}


def test_every_file_it_names_is_there() -> None:
    package = ROOT / "src/cocomix"
    named = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE)) - {"objectives/NAME.py"}
    assert len(named) > 30
    roots = (package, package / "steering", ROOT)
    assert [name for name in sorted(named) if not any((root / name).exists() for root in roots)] == []


def test_every_registry_it_names_is_there() -> None:
    for kind, function in re.findall(r"\| `([\w.]+\.[A-Z]+)` \| `cocomix\.([\w.]+\.register_\w+)` \|", PAGE):
        for path in (kind, function):
            module, _, name = f"cocomix.{path}".rpartition(".")
            assert hasattr(import_module(module), name), path
