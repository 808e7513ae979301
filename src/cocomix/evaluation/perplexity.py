"""Perplexity of a causal LM; losses are summed in float64.

- `perplexity`: windows side by side. A token has half a window of context on average, and the first tokens of each
  window have almost none.
- `strided_perplexity`: a sliding window. Every token but the first is scored once, with at least `seq_len - stride`
  tokens of context, at `seq_len / stride` times the cost.
- Every window of either begins with the beginning-of-text token where the tokens' policy has one.
- Bits per byte compares models of different vocabularies: the loss of all predicted tokens, in bits, over the UTF-8
  bytes these tokens stand for. A token without a prediction (a window's first) counts on neither side. Special tokens
  stand for no bytes, and their losses count.
- `measure_perplexity`: the command `cocomix perplexity`, on token shards or on text.

`window_subset` and `sharded_batches` choose the windows of a measurement and divide them among processes; other
measurements use them, too.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cocomix.data.byte_counts import ByteCounts, byte_counts
from cocomix.data.shards import TokenShards
from cocomix.data.sources import open_source
from cocomix.data.sources.files import unpacked_name
from cocomix.data.sources.records import JSON_FILE, JSON_LINES
from cocomix.data.special_tokens import policy_of_model
from cocomix.data.tokenizer import load_tokenizer, tokenize_corpus
from cocomix.model.loading import as_run, load_causal_lm
from cocomix.model.text_config import text_shape
from cocomix.utils.console import rank, world_size
from cocomix.utils.distributed import device, sum_over_processes
from cocomix.utils.env import as_float64, autocast, typed_precision
from cocomix.utils.errors import CocomixError

MANIFEST = "manifest.json"
SPAN = 1 << 20
"""Tokens whose bytes are counted at a time."""


def sharded_batches(windows: np.ndarray, size: int, *, sharded: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Batches of at most `size` windows for this process, and whether each batch counts.

    With `sharded`, the processes of a launch divide the batches. All get the same number, because a forward pass of an
    FSDP model needs every process: one with no batch left repeats the first batch, which then does not count. Without
    `sharded`, each process gets all batches.
    """
    starts = range(0, len(windows), size)
    offset, step = (rank(), world_size()) if sharded else (0, 1)
    for first in range(0, len(starts), step):
        counts = first + offset < len(starts)
        start = starts[first + offset if counts else 0]
        yield windows[start : start + size], counts


def window_subset(n_windows: int, limit: int | None) -> np.ndarray:
    """Indices of all windows, or of `limit` windows spread evenly, int64."""
    if limit is None or limit >= n_windows:
        return np.arange(n_windows, dtype=np.int64)
    return np.unique(np.linspace(0, n_windows - 1, limit).round().astype(np.int64))


@torch.no_grad()
def perplexity(
    model: Any,
    shards: TokenShards,
    *,
    seq_len: int,
    batch_size: int,
    max_windows: int | None = None,
    precision: str = "fp32",
    sharded: bool = False,
    bytes_of: ByteCounts | None = None,
) -> dict[str, float]:
    """Perplexity over windows side by side: exp of the mean loss over the `seq_len - 1` targets of each window.

    Args:
        model: any causal LM whose output has `.logits` `[batch, seq, vocab]`; its train or eval mode is left as it is.
        max_windows: measure this many windows, spread evenly; None: all.
        precision: "fp32", or "bf16" for autocast.
        sharded: the processes of a launch divide the windows. All must call this, and all get the result.
        bytes_of: bytes of the tokens of `shards`; None: no bits per byte.

    Returns:
        `loss` (nats a token), `perplexity`, `tokens` (targets counted), and with `bytes_of` also `bytes` (of these
        targets) and `bits_per_byte`.

    Raises:
        CocomixError: the shards hold fewer tokens than one window.
    """
    device = next(model.parameters()).device
    windows = window_subset(shards.n_windows(seq_len), max_windows)
    total, count, size = 0.0, 0, 0
    for indices, counts in sharded_batches(windows, batch_size, sharded=sharded):
        ids = torch.from_numpy(shards.windows(indices, seq_len)).to(device)
        with autocast(device, precision):
            logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        total += float(as_float64(losses).sum()) * counts
        count += losses.numel() * counts
        if bytes_of is not None:
            size += int(bytes_of.of_windows(indices, seq_len)[:, 1:].sum()) * counts
    if sharded:
        total, count, size = sum_over_processes(torch.tensor([total, count, size], dtype=torch.float64)).tolist()
    if not count:
        raise CocomixError(
            f"{shards.folder} has fewer tokens than one window of {seq_len}; add text to that split or lower seq_len"
        )
    return _figures(total, int(count), None if bytes_of is None else int(size))


def _figures(total: float, tokens: int, size: int | None) -> dict[str, float]:
    """What was measured.

    Args:
        total: loss of all targets, nats.
        tokens: number of targets.
        size: bytes that they stand for; None: not known.
    """
    loss = total / tokens
    figures = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": tokens}
    if size is None:
        return figures
    return figures | {"bytes": size} | ({"bits_per_byte": total / (math.log(2) * size)} if size else {})


@torch.no_grad()
def strided_perplexity(
    model: Any,
    shards: TokenShards,
    *,
    seq_len: int,
    stride: int,
    batch_size: int,
    precision: str = "fp32",
    bytes_of: ByteCounts | None = None,
) -> dict[str, float]:
    """Perplexity with a sliding window: exp of the mean next-token loss over all tokens but the first.

    Args:
        model: any causal LM whose output has `.logits` `[batch, seq, vocab]`; its train or eval mode is left as it is.
        stride: tokens that the window moves, 1 to seq_len - 1.
        precision: "fp32", or "bf16" for autocast.
        bytes_of: bytes of the tokens of `shards`; None: no bits per byte.

    Returns:
        As of `perplexity`.

    Raises:
        CocomixError: the stride leaves no context, or there are fewer than two tokens.
    """
    most = seq_len - 1 - shards.special.first_position
    if not 1 <= stride <= most:
        raise CocomixError(f"a stride of {stride} does not fit windows of {seq_len}; choose 1 to {most}")
    if shards.n_tokens < 2:
        raise CocomixError(f"{shards.folder} holds fewer than two tokens, so there is nothing to score; add text")
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    bos = shards.special.bos_id
    windows = _sliding_windows(shards.n_tokens, seq_len if bos is None else seq_len - 1, stride)
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        texts = [shards.span(begin, end) for begin, _, end in batch]
        if bos is not None:
            texts = [text if text[0] == bos else np.concatenate([[bos], text]) for text in texts]
        width = max(map(len, texts))
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        scored = torch.zeros(len(batch), width - 1, dtype=torch.bool)
        for row, (text, (_, first, end)) in enumerate(zip(texts, batch, strict=True)):
            ids[row, : len(text)] = torch.from_numpy(text)
            scored[row, len(text) - (end - first) - 1 : len(text) - 1] = True
        ids, scored = ids.to(device), scored.to(device)
        with autocast(device, precision):  # shorter rows are padded on the right, where causal models do not look
            logits = model(input_ids=ids, use_cache=False).logits
        losses = F.cross_entropy(logits[:, :-1][scored].float(), ids[:, 1:][scored], reduction="none")
        total += as_float64(losses).sum().cpu()
    # Span by span, because a whole stream of int64 may not fit into the memory.
    spans = ((begin, min(begin + SPAN, shards.n_tokens)) for begin in range(1, shards.n_tokens, SPAN))
    size = None if bytes_of is None else sum(int(bytes_of.of_span(*span).sum()) for span in spans)
    return _figures(float(total), shards.n_tokens - 1, size)


def _sliding_windows(n_tokens: int, seq_len: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first scored token, end) of each window; the first window scores all its tokens but the first."""
    end = min(seq_len, n_tokens)
    windows = [(0, 1, end)]
    while end < n_tokens:
        first, end = end, min(end + stride, n_tokens)
        windows.append((max(0, end - seq_len), first, end))
    return windows


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
    """Perplexity of the model `source` on `text`; with a `stride`, from a sliding window.

    Returns:
        What `perplexity` or `strided_perplexity` returns, with `seq_len`, `stride`, `precision`, and `as_run`.

    Raises:
        CocomixError: the model or the text cannot be read, or the text or an option does not fit the model.
    """
    precision = typed_precision(precision)
    if stride is not None and max_windows is not None:
        raise CocomixError("--stride scores every token, so it cannot be used with --max-windows; leave one out")
    model: Any = load_causal_lm(source, "the model", precision=precision)
    model = model.to(device())  # pyright: ignore[reportArgumentType]
    rows, positions = (shape := text_shape(model.config)).vocab_size, shape.positions
    length = seq_len or positions
    if length is None:
        raise CocomixError(f"the model {source} states no number of positions; give --seq-len")
    if positions is not None and length > positions:
        raise CocomixError(f"the model {source} has {positions} positions, fewer than --seq-len {length}; lower it")
    with _tokens(text, source, field, model.config.model_type) as (shards, bytes_of):
        if shards.vocab_size > rows and shards.largest_id() >= rows:
            raise CocomixError(
                f"{text} has tokens of a vocabulary of {shards.vocab_size}, the model {source} has rows for {rows};"
                " give the text instead, without tokens that the model does not know"
            )
        common = {"seq_len": length, "batch_size": batch_size, "precision": precision, "bytes_of": bytes_of}
        if stride is None:
            figures = perplexity(model, shards, max_windows=max_windows, **common)
        else:
            figures = strided_perplexity(model, shards, stride=stride, **common)
    return figures | {"seq_len": length, "stride": stride, "precision": precision} | as_run(model)


@contextmanager
def _tokens(text: Path, source: str, field: str, model_type: str) -> Iterator[tuple[TokenShards, ByteCounts | None]]:
    """Opens token shards, or tokenises text into a temporary folder by the model's policy; with bytes if known."""
    if (text / MANIFEST).exists():
        shards = TokenShards.open(text)
        _check_bos(text, shards, source, model_type)
        yield shards, _bytes_of_shards(text, shards, source)
        return
    if not text.exists():
        raise CocomixError(f"there is no {text}; give a folder of token shards, a text file or a .jsonl file")
    name, options = _source(text, field)
    with tempfile.TemporaryDirectory(prefix="cocomix-") as folder:
        documents = open_source(name, options)
        tokenizer = load_tokenizer(source)
        special = policy_of_model(tokenizer, source, model_type)
        shards = tokenize_corpus(tokenizer, documents, Path(folder) / "tokens", special=special)
        yield shards, byte_counts(tokenizer, shards, lambda: (one.text for one in open_source(name, options)))


def _bytes_of_shards(text: Path, shards: TokenShards, source: str) -> ByteCounts | None:
    """Bytes of tokens without their text, by the tokenizer beside them in a run, or else the model's."""
    try:
        beside = text.resolve().parent / "tokenizer"
        return byte_counts(load_tokenizer(str(beside) if beside.is_dir() else source), shards, None)
    except CocomixError:
        return None  # no tokenizer beside the weights either


def _check_bos(text: Path, shards: TokenShards, source: str, model_type: str) -> None:
    """Refuse tokens whose windows begin otherwise than those the model was trained on; a model alone is not checked."""
    try:
        special = policy_of_model(load_tokenizer(source), source, model_type)
    except CocomixError:
        return  # no tokenizer beside the weights
    if special.bos_id != shards.special.bos_id:
        begin = ["without" if bos is None else "with" for bos in (shards.special.bos_id, special.bos_id)]
        raise CocomixError(
            f"windows of {text} begin {begin[0]} a beginning-of-text token and the model {source} reads texts"
            f" {begin[1]} one; give the text instead"
        )


def _source(text: Path, field: str) -> tuple[str, dict[str, Any]]:
    """Name and options of the text source that reads `text`."""
    if text.is_dir():
        return "folder", {"path": text}
    if unpacked_name(text.name).endswith((*JSON_LINES, JSON_FILE)):
        return "jsonl", {"path": text, "field": field}
    return "folder", {"path": text.parent, "pattern": _literal(unpacked_name(text.name))}


def _literal(name: str) -> str:
    """A glob pattern that matches exactly `name`."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
