"""Text sources, whole-document splits, and the corpus on disk."""

from cocomix.corpus.document import Document, Skipped
from cocomix.corpus.reader import Corpus, read_file
from cocomix.corpus.source import TextSource
from cocomix.corpus.sources import SOURCES
from cocomix.corpus.split import SPLITS
from cocomix.corpus.writer import CorpusWriter

__all__ = ["SOURCES", "SPLITS", "Corpus", "CorpusWriter", "Document", "Skipped", "TextSource", "read_file"]
