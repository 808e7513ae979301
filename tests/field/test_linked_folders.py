"""Subfolders that are symbolic links were left out of the corpus, with no word and no count."""

import json
from pathlib import Path

from cocomix.data import SOURCES, Document


def test_linked_folders_are_part_of_the_corpus(tmp_path: Path) -> None:
    volume, mine = tmp_path / "volume", tmp_path / "mine"
    for folder in (volume, mine):
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.txt").write_text(f"text {number} of {folder.name}")
        (folder / f"{folder.name}.jsonl").write_text(json.dumps({"text": "line"}) + "\n")
    (mine / "linked").symlink_to(volume)
    (volume / "back").symlink_to(mine)
    for source, expected, left_out in (("folder", 6, 3), ("jsonl", 2, 7)):
        opened = SOURCES[source](path=mine)
        assert sum(isinstance(record, Document) for record in opened.records()) == expected
        assert opened.left_out.count == left_out  # the link back, and the files of other kinds
