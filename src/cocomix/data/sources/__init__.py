"""Text sources: where documents come from. One class a source, registered in `SOURCES`."""

from cocomix.data.sources.base import Document, Place, Skipped, Tally, TextSource
from cocomix.data.sources.mix import MixPart, MixSource
from cocomix.data.sources.records import JsonlSource
from cocomix.data.sources.registry import SOURCES, open_mix, open_source, register_source
from cocomix.data.sources.tables import HubSource, ParquetSource
from cocomix.data.sources.text import FolderSource, SotuSource

__all__ = [
    "SOURCES",
    "Document",
    "FolderSource",
    "HubSource",
    "JsonlSource",
    "MixPart",
    "MixSource",
    "ParquetSource",
    "Place",
    "Skipped",
    "SotuSource",
    "Tally",
    "TextSource",
    "open_mix",
    "open_source",
    "register_source",
]
