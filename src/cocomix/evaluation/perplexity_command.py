"""`cocomix perplexity`: any model on any tokens or text."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cocomix.data.shards import TokenShards
from cocomix.data.sources import SOURCES
from cocomix.data.tokenizer import load_tokenizer, tokenize_corpus
from cocomix.evaluation.perplexity import perplexity
from cocomix.evaluation.strided import strided_perplexity
from cocomix.model.loading import load_causal_lm
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError
from cocomix.utils.precision import fast_precision

MANIFEST = "manifest.json"
PRECISIONS = ("fp32", "bf16", "auto")


def measure_perplexity(
    source: str,
    text: Path,
    *,
    seq_len: int | None,
    stride: int | None,
    batch_size: int,
    max_windows: int | None,
    precision: str,
    field: str,
) -> dict[str, Any]:
    """Perplexity of the model `source` on `text`; see `perplexity` and `strided_perplexity`.

    Returns:
        Their figures with `seq_len`, `stride` and `precision`.

    Raises:
        CocomixError: something cannot be read, or does not fit the model.
    """
    if precision not in PRECISIONS:
        raise CocomixError(f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if stride is not None and max_windows is not None:
        raise CocomixError("--stride scores every token, so --max-windows does not go with it; leave one out")
    chosen = fast_precision() if precision == "auto" else precision
    model: Any = load_causal_lm(source, "the model").to(device())  # pyright: ignore[reportArgumentType]
    positions = model.config.max_position_embeddings
    length = seq_len or positions
    if length > positions:
        raise CocomixError(f"the model {source} has {positions} positions, fewer than --seq-len {length}; lower it")
    with _tokens(text, source, field) as shards:
        if shards.vocab_size > model.config.vocab_size:
            raise CocomixError(
                f"{text} was tokenised with a vocabulary of {shards.vocab_size}, the model {source} has"
                f" {model.config.vocab_size}; give the text instead"
            )
        common = {"seq_len": length, "batch_size": batch_size, "precision": chosen}
        if stride is None:
            figures = perplexity(model, shards, max_windows=max_windows, **common)
        else:
            figures = strided_perplexity(model, shards, stride=stride, **common)
    return figures | {"seq_len": length, "stride": stride, "precision": chosen}


@contextmanager
def _tokens(text: Path, source: str, field: str) -> Iterator[TokenShards]:
    """Token shards as they are, or text tokenised into a folder that is gone afterwards."""
    if (text / MANIFEST).exists():
        yield TokenShards.open(text)
        return
    if not text.exists():
        raise CocomixError(f"there is no {text}; give a folder of token shards, a text or .jsonl file")
    name, options = _source(text, field)
    with tempfile.TemporaryDirectory(prefix="cocomix-") as folder:
        documents = SOURCES[name](options)
        yield tokenize_corpus(load_tokenizer(source), documents, Path(folder) / "tokens")


def _source(text: Path, field: str) -> tuple[str, dict[str, Any]]:
    """Name and options of the text source that reads `text`."""
    if text.is_dir():
        return "folder", {"path": text}
    if text.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        return "jsonl", {"path": text, "field": field}
    return "folder", {"path": text.parent, "pattern": _literal(text.name.removesuffix(".gz"))}


def _literal(name: str) -> str:
    """A pattern that fits exactly `name`."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
