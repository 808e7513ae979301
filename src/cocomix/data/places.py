"""Sources of several files with many records each: which files, in which order, and where to go on."""

from collections.abc import Iterator
from glob import glob
from itertools import takewhile
from pathlib import Path

from cocomix.data.source import Place
from cocomix.utils.errors import CocomixError


def files_at(path: str | Path, endings: tuple[str, ...], what: str) -> list[tuple[str, Path]]:
    """(name, path) of the one file at `path`, of the files below the folder there, or of those that fit the glob.

    In path order. The name is what the file is called in ids and reports: its own for one file, else its path below
    the folder, or below what the files of the glob have in common.

    Raises:
        CocomixError: there is none; `what` says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return [(path.name, path)]
    if path.is_dir():
        root, found = path, [file for file in path.rglob("*") if file.name.endswith(endings)]
    else:
        found = [Path(name) for name in glob(str(path), recursive=True)]
        root = Path(*takewhile(lambda part: not any(sign in part for sign in "*?["), path.parts))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise CocomixError(
            f"there is no file {path}; set corpus.options.path to {what}, a folder of them, or a pattern such as"
            f" texts/*{endings[0]}"
        )
    return [(str(file.relative_to(root)), file) for file in files]


def remaining(files: list[tuple[str, Path]], place: Place) -> Iterator[tuple[int, str, Path, Place]]:
    """(number, name, path, place inside the file) of the files from `place` on; one marked `done` is left out.

    Raises:
        CocomixError: the file that was being read is not there in its place any more.
    """
    first = place.get("file", 0)
    if place and (first >= len(files) or files[first][0] != place["name"]):
        raise CocomixError(
            f"{place['name']}, which the stopped command was reading, is not at its place any more; put it back, or"
            " delete the run's folder .partial to start over"
        )
    for number in range(first + bool(place.get("done")), len(files)):
        yield number, *files[number], place if number == first else {}
