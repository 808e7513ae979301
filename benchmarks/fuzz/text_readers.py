"""Readers of texts, corpora, token shards and tokenizers."""

import base64
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz.reader import Reader, edit_json, manifest_entry, reseal
from cocomix.data.corpus import Corpus, CorpusWriter
from cocomix.data.shards import TokenShards, write_shards
from cocomix.data.sources import JsonlSource, ParquetSource, TextSource
from cocomix.data.tokenizer import load_tokenizer, train_tokenizer

TEXTS = [
    f"The {word} of the house stands on number {n}, naïve and {word * 3}." for n, word in enumerate("abcdefghijkl")
]
ENDLESS = 700 << 20
"""Bytes of a line that is compressed to a few hundred kilobytes."""


def _make_shards(folder: Path) -> None:
    write_shards(folder, [list(range(n, n + 40)) for n in range(6)], vocab_size=300, eos_id=0, shard_tokens=90)


def _read_shards(folder: Path) -> None:
    shards = TokenShards.open(folder)
    shards.windows(np.arange(shards.n_windows(8)), 8)
    shards.span(0, shards.n_tokens)
    _ = shards.documents.tolist(), shards.fingerprint, shards.vocab_size


def _shard_entries(manifest: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for entry in [*manifest["shards"], manifest["boundaries"]]:
        yield entry, entry["file"]


def _lines(texts: list[str]) -> bytes:
    return "".join(
        json.dumps({"text": text, "n": n, "deep": [{"x": None}]}) + "\n" for n, text in enumerate(texts)
    ).encode()


def _drained(source: TextSource) -> None:
    for _ in source.records():
        json.dumps(source.place())


def _read_jsonl(folder: Path) -> None:
    _drained(JsonlSource(path=folder))


def _make_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": TEXTS, "n": list(range(len(TEXTS)))})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=5)


def _make_corpus(folder: Path) -> None:
    source = folder / "source.jsonl"
    source.write_bytes(_lines(TEXTS * 3))
    CorpusWriter(folder / "work", val_fraction=0.2, test_fraction=0.2, file_bytes=800).write(
        JsonlSource(path=source), lambda *_: None
    )
    source.unlink()
    for path in (folder / "work" / "text").iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder / "work")


def _read_corpus(folder: Path) -> None:
    corpus = Corpus(folder)
    _ = corpus.fingerprint
    for split in ("train", "val", "test"):
        _ = corpus.count(split, "documents"), corpus.count(split, "chars")
        for document in corpus.documents(split):
            _ = document.text.encode()


def _corpus_entries(manifest: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for split in manifest["splits"].values():
        for entry in split["files"]:
            yield entry, entry["file"]


def _make_tokenizer(folder: Path) -> None:
    train_tokenizer(TEXTS, 300, folder)


def _make_tokenizer_file(folder: Path) -> None:
    _make_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()


def _make_gpt2_tokenizer(folder: Path) -> None:
    _make_tokenizer(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    for path in folder.iterdir():
        path.unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(merge) + "\n" for merge in model["merges"]))


def _tokenised(source: Path) -> None:
    tokenizer = load_tokenizer(str(source))
    _ = len(tokenizer), tokenizer.eos_token_id


CODE = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
HOSTILE_MODULE = "import os; os.system('touch ../outside/ran')\nclass Evil: pass\n"


def _with_code(folder: Path) -> None:
    edit_json("tokenizer_config.json", lambda content: content.update(CODE))(folder)
    (folder / "evil.py").write_text(HOSTILE_MODULE)


def _escaping(folder: Path) -> None:
    def change(manifest: Any) -> None:
        manifest["shards"][0]["file"] = "../outside/shard-00000.bin"

    edit_json("manifest.json", change)(folder)


def _escaping_corpus(folder: Path) -> None:
    def change(manifest: Any) -> None:
        entry = manifest["splits"]["train"]["files"][0]
        entry["file"] = "../outside/" + Path(entry["file"]).name
        entry |= {key: value for key, value in manifest_entry(folder / entry["file"]).items() if key in entry}

    edit_json("corpus.json", change)(folder)


def _endless(folder: Path) -> None:
    with gzip.open(folder / "a.jsonl.gz", "wb", compresslevel=1) as stream:
        stream.write(b'{"text": "')
        for _ in range(ENDLESS >> 20):
            stream.write(b"x" * (1 << 20))


def _object_boundaries(folder: Path) -> None:
    """Replace the boundaries by a pickle, which NumPy would load with `allow_pickle`."""
    path = folder / "doc-boundaries.npy"
    payload = base64.b64decode(b"gASVIwAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAh0b3VjaCByYW6UhZRSlC4=")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload)
    reseal(folder / "manifest.json", _shard_entries)


READERS = (
    Reader(
        "token-shards",
        _make_shards,
        _read_shards,
        seal=lambda folder: reseal(folder / "manifest.json", _shard_entries),
        hostile={"a shard outside": _escaping, "boundaries that are a pickle": _object_boundaries},
    ),
    Reader("jsonl", lambda folder: (folder / "a.jsonl").write_bytes(_lines(TEXTS)), _read_jsonl),
    Reader(
        "jsonl-gz",
        lambda folder: (folder / "a.jsonl.gz").write_bytes(gzip.compress(_lines(TEXTS))),
        _read_jsonl,
        hostile={"a line without end": _endless},
    ),
    Reader("parquet", _make_parquet, lambda folder: _drained(ParquetSource(path=folder))),
    Reader(
        "corpus",
        _make_corpus,
        _read_corpus,
        seal=lambda folder: reseal(folder / "corpus.json", _corpus_entries),
        hostile={"a file outside": _escaping_corpus},
    ),
    Reader("tokenizer", _make_tokenizer, _tokenised, hostile={"code beside it": _with_code}, share=0.5),
    Reader("tokenizer-file", _make_tokenizer_file, lambda folder: _tokenised(folder / "tokenizer.json")),
    Reader("tokenizer-gpt2", _make_gpt2_tokenizer, _tokenised, share=0.5),
)
