"""The corpus on disk: one JSON-lines file a split, and a manifest with counts and checksums."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cocomix.corpus.document import Document
from cocomix.errors import CocomixError
from cocomix.files import sha256, write_json

MANIFEST = "corpus.json"


def write_corpus(folder: Path | str, splits: dict[str, list[Document]]) -> dict[str, Any]:
    """Write all splits, then rename into place; an existing `folder` survives any failure before that.

    Returns:
        The manifest: `{"splits": {name: {documents, chars, sha256}}}`.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    counts = {}
    for name, documents in splits.items():
        path = temporary / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as stream:
            for document in documents:
                stream.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")
        counts[name] = {
            "documents": len(documents),
            "chars": sum(len(document.text) for document in documents),
            "sha256": sha256(path),
        }
    manifest = {"format": 1, "splits": counts}
    write_json(temporary / MANIFEST, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return manifest


def read_corpus(folder: Path | str, split: str) -> Iterator[Document]:
    """Documents of `split`, in their order, after checking the file against the manifest.

    Raises:
        CocomixError: the corpus or split is missing, or its file was altered.
    """
    folder = Path(folder)
    try:
        entry = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["splits"][split]
        same = sha256(folder / f"{split}.jsonl") == entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CocomixError(f"{folder} holds no corpus with a {split} split; run `cocomix corpus`") from None
    if not same:
        raise CocomixError(f"{folder / f'{split}.jsonl'} was altered; delete {folder} and run `cocomix corpus` again")
    return _lines(folder / f"{split}.jsonl")


def _lines(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield Document(**json.loads(line))
