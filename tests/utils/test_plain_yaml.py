"""YAML of strangers: what is too much, in itself or not what it looks like is a ValueError, and soon."""

from pathlib import Path

import pytest
import yaml

from cocomix.experiments.config import ExperimentConfig
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import DEEPEST, MOST, plain_yaml, read_yaml, validate

BOMB = "[&a0 [x, x], " + ", ".join(f"&a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)) + "]"
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], y{n}: 1}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text", ["a: 1", "[1, x, 2.5, null, true]", "a: &x {b: [1]}\nc: *x\nd: {<<: *x, e: 2}", "", "2001-01-01"]
)
def test_plain_values_are_read_as_they_always_were(text: str) -> None:
    assert plain_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        *(BOMB, MERGES, "&a [*a]", "&a {x: *a}", "&a {<<: *a}", "[" * 50_000, "[" * 120 + "]" * 120, "x" * 2_000_000),
        *("2001-99-99", "2001-01-01 99:99:99", "!!timestamp x", "!!int ''", "!!int x", "!!bool x", "9" * 5000),
        *(
            "!!python/object/apply:os.system [x]",
            "!unknown x",
            "*nowhere",
            "{? [a] : b}",
            "a: 1\n---\nb: 2",
            "a: b: c",
            "\x07",
            '"\\ud800"',
        ),
    ],
)
def test_anything_else_is_a_value_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        plain_yaml(text)
    (tmp_path / "a.yaml").write_text(f"title: {text}\n", encoding="utf-8")
    with pytest.raises(CocomixError):
        read_yaml(tmp_path / "a.yaml")
    with pytest.raises(CocomixError):
        read_yaml(recipe(tmp_path), [f"title={text}"])


def recipe(folder: Path) -> Path:
    path = folder / "b.yaml"
    path.write_text("title: x\n")
    return path


def test_as_much_as_may_be_is_read() -> None:
    assert len(plain_yaml("[" + "1," * (MOST - 1) + "]")) == MOST - 1
    with pytest.raises(ValueError, match="values"):
        plain_yaml("[" + "1," * MOST + "]")
    assert plain_yaml("[" * DEEPEST + "]" * DEEPEST)


WITHOUT_BASELINE = 'title: x, seeds: [0], base: {}, variants: {"\\ud800": {}}, settings: {a: {title: x}}'


@pytest.mark.parametrize("text", ['"\\ud800": 1', 'title: "\\ud800"', 'variants: {"\\ud800": 3}', WITHOUT_BASELINE])
def test_half_a_character_is_refused_wherever_it_stands(text: str, tmp_path: Path) -> None:
    """Pydantic cannot even say that a name is none of those there are, one of which cannot be written."""
    path = tmp_path / "a.yaml"
    path.write_text(f"{{{text}}}")
    with pytest.raises(CocomixError):
        validate(ExperimentConfig, read_yaml(path), "it")
