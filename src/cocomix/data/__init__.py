"""Text to documents, documents to tokens, tokens to windows."""

from cocomix.data.corpus import CorpusWriter
from cocomix.data.document import Document, Skipped
from cocomix.data.reader import Corpus, read_file
from cocomix.data.sampler import batch_order
from cocomix.data.shards import TokenShards, write_shards
from cocomix.data.source import TextSource
from cocomix.data.sources import SOURCES
from cocomix.data.split import SPLITS
from cocomix.data.tokenizer import load_tokenizer, tokenize_corpus, train_tokenizer

__all__ = [
    "SOURCES",
    "SPLITS",
    "Corpus",
    "CorpusWriter",
    "Document",
    "Skipped",
    "TextSource",
    "TokenShards",
    "batch_order",
    "load_tokenizer",
    "read_file",
    "tokenize_corpus",
    "train_tokenizer",
    "write_shards",
]
