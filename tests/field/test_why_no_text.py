"""JSON lines with another field ended in "holds no text", and the reasons, which were known, were thrown away."""

import json
from pathlib import Path

import pytest

from cocomix.data import SOURCES, CorpusWriter
from cocomix.utils.errors import CocomixError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("".join(json.dumps({"id": n, "content": "the road"}) + "\n" for n in range(40)), "40 .*but 'id', 'content'"),
        (json.dumps({"meta": {"body": "nested"}}) + "\n", "1 record .*but 'meta.body'"),
        (json.dumps([{"body": "in an array"}] * 3), "3 records .*but 'body'"),
        (json.dumps({"text": ["a", "list"]}) + "\n", "'text' is no text"),
        (json.dumps({"text": " "}) + "\n", "1 left out, .*there is no text in it"),
    ],
)
def test_a_refused_corpus_says_what_it_found(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    writer = CorpusWriter(tmp_path / "out", val_fraction=0.1, test_fraction=0.1)
    with pytest.raises(CocomixError, match=f"holds no text .*{words}"):
        writer.write(SOURCES["jsonl"](path=tmp_path / "a.jsonl"), lambda *_: None)
