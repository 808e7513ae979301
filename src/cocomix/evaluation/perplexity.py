"""Perplexity over fixed windows, summed in float64."""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cocomix.data.shards import TokenShards
from cocomix.data.sources import open_source
from cocomix.data.tokenizer import load_tokenizer, tokenize_corpus
from cocomix.model.loading import load_causal_lm
from cocomix.utils.console import rank, world_size
from cocomix.utils.distributed import device, sum_over_processes
from cocomix.utils.env import autocast, fast_precision
from cocomix.utils.errors import CocomixError

# Dividing the batches of a measurement among the processes of a launch.


def batches(windows: np.ndarray, size: int, *, shared: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Batches of at most `size` windows for this process, and whether each counts.

    Shared, every process gets equally many, since a forward pass of a sharded model is everybody's: who has none left
    repeats the first one, which then does not count. Else each process gets all of them.
    """
    starts = range(0, len(windows), size)
    mine, step = (rank(), world_size()) if shared else (0, 1)
    for turn in range(0, len(starts), step):
        counts = turn + mine < len(starts)
        start = starts[turn + mine if counts else 0]
        yield windows[start : start + size], counts


def window_subset(n_windows: int, wanted: int | None) -> np.ndarray:
    """All windows, or `wanted` of them spread evenly, int64."""
    if wanted is None or wanted >= n_windows:
        return np.arange(n_windows, dtype=np.int64)
    return np.unique(np.linspace(0, n_windows - 1, wanted).round().astype(np.int64))


@torch.no_grad()
def perplexity(
    model: Any,
    shards: TokenShards,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
    precision: str = "fp32",
    shared: bool = False,
) -> dict[str, float]:
    """exp of the mean next-token loss over the `seq_len - 1` targets of each window.

    Args:
        model: any causal LM whose output has `.logits` `[batch, seq, vocab]`; it is left in its mode.
        max_windows: measure on this many windows, evenly spread; None is all.
        precision: "fp32", or "bf16" for autocast.
        shared: the processes of a launch divide the windows; all must call, and all get the result.

    Returns:
        `loss` (nats a token), `perplexity`, `tokens` (targets counted).

    Raises:
        CocomixError: the shards hold less than one window.
    """
    device = next(model.parameters()).device
    windows = window_subset(shards.n_windows(seq_len), max_windows)
    total, count = 0.0, 0
    for part, counts in batches(windows, batch_size, shared=shared):
        ids = torch.from_numpy(shards.windows(part, seq_len)).to(device)
        with autocast(device, precision):
            logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        total += float(losses.double().sum()) * counts
        count += losses.numel() * counts
    if shared:
        total, count = sum_over_processes(torch.tensor([total, count], dtype=torch.float64)).tolist()
    if not count:
        raise CocomixError(
            f"{shards.folder} has fewer tokens than one window of {seq_len}; add text to that split or lower seq_len"
        )
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": int(count)}


# Perplexity with a sliding window: every token but the first is scored once, with a long context before it.
#
# Windows side by side give a token on average half a window of context, and the first ones of each window almost none;
# with a stride s each scored token has at least seq_len - s tokens before it, at seq_len / s times the cost.


@torch.no_grad()
def strided_perplexity(
    model: Any, shards: TokenShards, *, seq_len: int, stride: int, batch_size: int, precision: str = "fp32"
) -> dict[str, float]:
    """exp of the mean next-token loss over all tokens of the shards but the first.

    Args:
        model: any causal LM whose output has `.logits` `[batch, seq, vocab]`; it is left in its mode.
        stride: tokens a window moves, 1 to seq_len - 1.
        precision: "fp32", or "bf16" for autocast.

    Returns:
        `loss` (nats a token), `perplexity`, `tokens` (targets counted).

    Raises:
        CocomixError: a stride that leaves no context, or a single token.
    """
    if not 1 <= stride < seq_len:
        raise CocomixError(f"a stride of {stride} does not fit windows of {seq_len}; choose 1 to {seq_len - 1}")
    if shards.n_tokens < 2:
        raise CocomixError(f"{shards.folder} holds fewer than two tokens, so there is nothing to score; add text")
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    jobs = _windows(shards.n_tokens, seq_len, stride)
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        width = max(end - begin for begin, _, end in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        counted = torch.zeros(len(part), width - 1, dtype=torch.bool)
        for row, (begin, first, end) in enumerate(part):
            ids[row, : end - begin] = torch.from_numpy(shards.span(begin, end))
            counted[row, first - begin - 1 : end - begin - 1] = True
        ids, counted = ids.to(device), counted.to(device)
        with autocast(device, precision):  # rows that are shorter are filled on the right, where nothing looks
            logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="none")
        total += losses.double().sum().cpu()
    count = shards.n_tokens - 1
    loss = float(total) / count
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": count}


def _windows(n_tokens: int, seq_len: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first token scored, end) of each window; the first one scores all its tokens but one."""
    end = min(seq_len, n_tokens)
    windows = [(0, 1, end)]
    while end < n_tokens:
        first, end = end, min(end + stride, n_tokens)
        windows.append((max(0, end - seq_len), first, end))
    return windows


# `cocomix perplexity`: any model on any tokens or text.

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
        documents = open_source(name, options)
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
