"""Text sources, whole-document splits, and the corpus on disk."""

from cocomix.corpus.document import Document
from cocomix.corpus.files import read_corpus, write_corpus
from cocomix.corpus.sources import SOURCES, TextSource
from cocomix.corpus.split import split_documents

__all__ = ["SOURCES", "Document", "TextSource", "read_corpus", "split_documents", "write_corpus"]
