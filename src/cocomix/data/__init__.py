"""Text to documents, documents to tokens, tokens to windows."""

from cocomix.data.corpus import SPLITS, Corpus, CorpusWriter, read_file
from cocomix.data.sampler import batch_order
from cocomix.data.shards import TokenShards, write_shards
from cocomix.data.sources import SOURCES, Document, Skipped, TextSource, open_source, register_source
from cocomix.data.special_tokens import SpecialTokens
from cocomix.data.tokenizer import load_tokenizer, tokenize_corpus, train_tokenizer

__all__ = [
    "SOURCES",
    "SPLITS",
    "Corpus",
    "CorpusWriter",
    "Document",
    "Skipped",
    "SpecialTokens",
    "TextSource",
    "TokenShards",
    "batch_order",
    "load_tokenizer",
    "open_source",
    "read_file",
    "register_source",
    "tokenize_corpus",
    "train_tokenizer",
    "write_shards",
]
