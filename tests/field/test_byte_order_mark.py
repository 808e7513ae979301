"""A text file with a byte-order mark (Windows editors) kept it as its first character, which was trained on."""

import gzip
import json
from pathlib import Path

import pytest

from cocomix.data import SOURCES

MARKED = "Fellow citizens".encode("utf-8-sig")
ROW = json.dumps({"text": "Fellow citizens"}).encode("utf-8-sig")


@pytest.mark.parametrize(
    ("source", "name", "content"),
    [
        ("folder", "a.txt", MARKED),
        ("folder", "a.md.gz", gzip.compress(MARKED, mtime=0)),
        ("jsonl", "a.jsonl", ROW),
        ("jsonl", "a.json", ROW),
        ("jsonl", "a.json", b"\xef\xbb\xbf[" + ROW[3:] + b"]"),
    ],
)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, source: str, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    options = {"path": tmp_path} if source == "folder" else {"path": tmp_path / name}
    assert [document.text for document in SOURCES[source](**options)] == ["Fellow citizens"]
