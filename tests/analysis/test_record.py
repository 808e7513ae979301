"""Statistics come back from their file as they were, and only for what they are of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save_file

from cocomix.analysis import ConceptStatistics, read_statistics, write_statistics
from tests.helpers.small_index import KEY, Labels, corpus, statistics, student


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> ConceptStatistics:
    return statistics(student(), corpus(tmp_path_factory.mktemp("text") / "s"), Labels())


def test_it_comes_back_as_it_was(found: ConceptStatistics, tmp_path: Path) -> None:
    path = tmp_path / "atlas" / "a.safetensors"
    write_statistics(path, found)
    back = read_statistics(path, KEY)
    assert back is not None
    for name, value in vars(found).items():
        other = getattr(back, name)
        if isinstance(value, np.ndarray):
            assert other.dtype == value.dtype and other.tolist() == value.tolist(), name
        else:
            assert other == value, name
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "other", [{"student": "x"}, {"shards": "x"}, {"labels": None}, {"seq_len": 13}, {"tokens": 999}]
)
def test_of_something_else_it_is_none(found: ConceptStatistics, tmp_path: Path, other: dict[str, object]) -> None:
    write_statistics(tmp_path / "a", found)
    assert read_statistics(tmp_path / "a", KEY.model_copy(update=other)) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def no_words(path: Path) -> None:
    save_file(load_file(path), path)


def changed(**arrays: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as stored:
            about = stored.metadata()
        held = load_file(path)
        save_file(held | {name: make(held[name]) for name, make in arrays.items()}, path, metadata=about)

    return change


def of_no_numpy_type(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stored:
        about = stored.metadata()
    held = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    torch_save_file(held | {"strengths": held["strengths"].bfloat16()}, path, metadata=about)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        Path.unlink,
        no_words,
        lambda path: path.write_text("{}"),
        changed(true=lambda one: one[:-1]),
        changed(strengths=lambda one: one.astype(np.float64)),
        changed(strengths=lambda one: np.asarray(one.sum())),
        changed(predicted=lambda one: np.asarray(one.sum())),
        of_no_numpy_type,
        changed(starts=lambda one: one + 1),
        changed(starts=lambda one: one[::-1].copy()),
    ],
)
def test_a_damaged_or_missing_file_is_none(
    found: ConceptStatistics, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "a"
    write_statistics(path, found)
    damage(path)
    assert read_statistics(path, KEY) is None
    write_statistics(path, found)
    changed(true=lambda one: one)(path)
    assert read_statistics(path, KEY) is not None
