"""Train and load tokenizers, and tokenize documents into shards."""

import base64
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cocomix.data.cuts import bounded_pieces
from cocomix.data.shards import TokenShards, write_shards
from cocomix.data.sources import Document
from cocomix.data.special_tokens import SpecialTokens
from cocomix.utils.errors import CocomixError, reason, tokenizer_errors
from cocomix.utils.files import check_source, read_json
from cocomix.utils.gguf import local_source
from cocomix.utils.interrupt import interruptible

END_OF_TEXT = "<|endoftext|>"
CONFIG = "tokenizer_config.json"
MOST_GAPS = 1_000_000
"""Most unused ids below the largest id of a vocabulary."""
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
"""Possible end-of-text tokens of a bare tokenizer.json, which does not name it; the first that exists is used."""


LONGEST_WORD = 1024
"""Most bytes of a pre-token that the BPE trainer sees whole. Its time grows with the square of a pre-token's length:
a word of 800,000 letters, such as a genome, took it seven minutes. No entry of a vocabulary comes near this length."""
LONGEST_TEXT = 1 << 20
"""Characters, about, given to the trainer at a time."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: Path | str,
    progress: Callable[[int], None] = lambda _chars: None,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `vocab_size` entries and save it as a Transformers tokenizer folder.

    `<|endoftext|>` has id 0 and serves as beginning, end and padding token. Words of more than `LONGEST_WORD` bytes are
    counted in parts; text without any gives the vocabulary it always gave. Ctrl-C stops it at once.

    Args:
        progress: called several times a second with the characters read so far; all of them while merges are learnt.
    """
    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([whole, pre_tokenizers.FixedLength(LONGEST_WORD)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chars, stopped = 0, False

    def parts() -> Iterator[str]:
        nonlocal chars
        for text in texts:
            for part in bounded_pieces(text, LONGEST_TEXT):
                if stopped:
                    return
                chars += len(part)
                yield part

    try:
        interruptible(lambda: tokenizer.train_from_iterator(parts(), trainer), lambda: progress(chars))
    except BaseException:
        stopped = True
        raise
    tokenizer.pre_tokenizer = whole
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    fast.save_pretrained(folder)
    return fast


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load any Transformers or Tokenizers tokenizer; no code from the source is run.

    Args:
        source: a tokenizer folder, a hub id, a GGUF file or `package:NAME` of one, a Tokenizers file (`tokenizer.json`;
            beside a `tokenizer_config.json` its folder is loaded), a folder with GPT-2's `vocab.json` and `merges.txt`
            alone, or a student's snapshot, which has none of its own and gets the student's.

    Raises:
        CocomixError: nothing loadable there, or it has no end-of-text token.
    """
    source = local_source(source, "the tokenizer")
    check_source(source, "the tokenizer")
    of_student = Path(source).absolute().parent.parent / "model"
    if Path(source).absolute().parent.name == "snapshots" and (of_student / CONFIG).is_file():
        source = str(of_student)
    try:
        _check_ids(Path(source))
        _check_growth(Path(source))
        tokenizer = _load(Path(source), source)
        # Transformers makes up a tokenizer without entries where a folder has the weights alone.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("it has no entries but special tokens")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged file raises one of many types; a panic in Rust is not an Exception
        raise CocomixError(
            f"no tokenizer can be loaded from {source} ({reason(error)}); give a tokenizer folder or file, or a hub id"
        ) from error
    if tokenizer.eos_token_id is None:
        raise CocomixError(
            f"the tokenizer {source} has no end-of-text token; name one as eos_token in a tokenizer_config.json there"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_growth(path: Path) -> None:
    """Refuse a tokenizer that makes much more text, or many more tokens, than it is given.

    Raises:
        OSError, ValueError: it does, or a file is damaged.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        return
    content = read_json(file)
    if not isinstance(content, dict):
        return
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (times := _growth(content.get(part), 0)) > MOST_GROWTH:
            raise ValueError(f"its {part} can make a text {times:,} times as long")
    padding = content.get("padding")
    if isinstance(padding, dict):
        strategy, multiple = padding.get("strategy"), padding.get("pad_to_multiple_of")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
        if any(isinstance(size, int) and size > MOST_PADDING for size in (fixed, multiple)):
            raise ValueError(f"it pads every text to more than {MOST_PADDING:,} tokens")


MOST_GROWTH = 100
"""Most characters that a part of a tokenizer may make of one; published ones make at most 18 (NFKC of one ligature)."""
MOST_PADDING = 1 << 20
"""Most tokens that a tokenizer may pad a text to."""
DEEPEST = 50


def _growth(part: Any, depth: int) -> int:
    """Upper bound of how many characters a normaliser, pre-tokeniser or decoder makes of one."""
    if not isinstance(part, dict):
        return 1
    if depth > DEEPEST:
        raise ValueError("its parts are nested too deeply")
    children = next((part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part), None)
    if isinstance(children, list):
        times = 1
        for child in children:
            times = min(times * _growth(child, depth + 1), 10**12)
        return times
    kind = part.get("type")
    if kind == "Replace":
        pattern = part.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        # A regular expression may match a single character, or the empty text beside each.
        taken = len(text) if isinstance(text, str) and text else 1
        return max(1, -(-len(str(part.get("content", ""))) // taken) + (text is None))
    if kind == "Prepend":
        return 1 + len(str(part.get("prepend", "")))
    if kind == "Precompiled":
        return _longest_replacement(part.get("precompiled_charsmap"))
    return 1


def _longest_replacement(charsmap: Any) -> int:
    """Longest text in SentencePiece's table of replacements: the size of a trie, the trie, texts ended by zeros."""
    if not isinstance(charsmap, str):
        return 1
    table = base64.b64decode(charsmap)
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max((len(text.decode("utf-8", "replace")) for text in texts.split(b"\0")), default=1)


def _check_ids(path: Path) -> None:
    """Refuse token ids far above their count: the Tokenizers library allocates a slot for each id up to the largest,
    and aborts the process if there is no memory for them.

    Raises:
        OSError, ValueError: there is such an id, or a file is damaged.
    """
    files = [path / "tokenizer.json", path / "vocab.json"] if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            continue
        content = read_json(file)
        inside = content if isinstance(content, dict) else {}
        model = inside.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else inside
        added = inside.get("added_tokens")
        numbers = [*vocab.values()] if isinstance(vocab, dict) else []
        numbers += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
        largest = max((number for number in numbers if isinstance(number, int)), default=0)
        if largest > len(numbers) + MOST_GAPS:
            raise ValueError(f"{file.name} numbers {len(numbers)} tokens up to {largest}")


def _load(path: Path, source: str) -> PreTrainedTokenizerBase:
    if path.is_file() and not (path.parent / CONFIG).is_file():
        backend = Tokenizer.from_file(str(path))
        end = next((token for token in ENDS if backend.token_to_id(token) is not None), None)
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)
    inside = {file.name for file in path.iterdir()} if path.is_dir() else set()
    described = inside & {"tokenizer.json", CONFIG, "config.json"}
    if {"vocab.json", "merges.txt"} <= inside and not described:
        return GPT2Tokenizer.from_pretrained(source)
    return AutoTokenizer.from_pretrained(str(path.parent) if path.is_file() else source, trust_remote_code=False)


def tokenize_corpus(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Document],
    folder: Path | str,
    *,
    shard_tokens: int = 100_000_000,
    batch_documents: int = 64,
    special: SpecialTokens | None = None,
) -> TokenShards:
    """Encode documents in batches (in parallel, in Rust) and write them as shards.

    Args:
        special: where special tokens stand; None: BOS where the tokenizer puts it by default.
    """
    special = special or SpecialTokens.of_tokenizer(tokenizer)

    def ids() -> Iterator[list[int]]:
        for batch in _batches(documents, batch_documents):
            texts = [document.text for document in batch]
            with tokenizer_errors(tokenizer.name_or_path):
                encoded = interruptible(lambda t=texts: special.texts(tokenizer, t))
            yield from encoded

    return write_shards(
        folder,
        ids(),
        vocab_size=len(tokenizer),
        eos_id=special.eos_id,
        shard_tokens=shard_tokens,
        special=special,
    )


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while batch := list(islice(stream, size)):
        yield batch
