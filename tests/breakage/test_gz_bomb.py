"""A packed file of kilobytes that holds gigabytes is skipped with a count, in bounded memory."""

import bz2
import gzip
import lzma
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cocomix.data import SOURCES, Document, Skipped
from cocomix.data.sources import files

PROGRAM = """
import resource, sys
from cocomix.data import SOURCES, Document
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
for name in ("folder", "jsonl"):
    records = list(SOURCES[name](path=sys.argv[1]).records())
    print(name, [record.text[:9] if isinstance(record, Document) else record.reason for record in records])
"""


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_no_more_is_unpacked_than_the_limit(tmp_path: Path, pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_UNPACKED", 5000)
    kinds = {"bomb.txt": b"a" * 2_000_000, "bomb.jsonl": b'{"text": "x"}\n' * 100_000, "fine.txt": b"fine" * 1000}
    for name, text in kinds.items():
        (tmp_path / name).write_bytes(pack(text))
    records = list(SOURCES["folder"](path=tmp_path).records())
    assert [type(record) for record in records] == [Skipped, Document]
    assert isinstance(records[0], Skipped) and "unpacks to more than" in records[0].reason
    lines = list(SOURCES["jsonl"](path=tmp_path / "bomb.jsonl").records())
    limit = max(5000, files.MOST_TIMES * (tmp_path / "bomb.jsonl").stat().st_size)
    assert (
        len(lines) - 1 <= limit / 14 + 1 and isinstance(lines[-1], Skipped) and "rest of the file" in lines[-1].reason
    )
    source = SOURCES["jsonl"](path=tmp_path / "bomb.jsonl")
    list(source.records())
    assert list(SOURCES["jsonl"](path=tmp_path / "bomb.jsonl").records(source.place())) == []


def test_a_bomb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    member = gzip.compress(b"a" * (16 << 20), 1)
    for name in ("b.txt.gz", "b.jsonl.gz"):
        (tmp_path / name).write_bytes(member * 16)  # a quarter of a gigabyte
    (tmp_path / "c.txt").write_text("hello")
    (tmp_path / "c.jsonl").write_text('{"text": "hello"}\n')
    limit = 6 << 30 if resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY else 1 << 62
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(limit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, jsonl = done.stdout.splitlines()
    assert "unpacks to more than" in folder and "'hello'" in folder
    assert ("a line of more than 64 MiB" in jsonl or "unpacks to more than" in jsonl) and "'hello'" in jsonl
