"""Tokenizers and memory-mapped token shards."""

from cocomix.tokens.order import batch_order
from cocomix.tokens.shards import TokenShards, write_shards
from cocomix.tokens.tokenizer import load_tokenizer, tokenize_corpus, train_tokenizer

__all__ = ["TokenShards", "batch_order", "load_tokenizer", "tokenize_corpus", "train_tokenizer", "write_shards"]
