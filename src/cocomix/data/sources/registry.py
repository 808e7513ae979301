"""The list of text sources, and opening one by its name or several as a mixture."""

from collections.abc import Mapping, Sequence
from typing import Any

from cocomix.data.sources.base import TextSource
from cocomix.data.sources.mix import MixPart, MixSource
from cocomix.data.sources.records import JsonlSource
from cocomix.data.sources.tables import HubSource, ParquetSource
from cocomix.data.sources.text import FolderSource, SotuSource
from cocomix.utils.registry import Registry

SOURCES: Registry[type[TextSource]] = Registry(
    "text source", [SotuSource, FolderSource, JsonlSource, ParquetSource, HubSource], own=("title",)
)


def register_source(cls: type[TextSource]) -> type[TextSource]:
    """Make a text source of your own known by its `name`; usable as a decorator."""
    return SOURCES.register(cls)


def open_source(name: str, options: Mapping[str, Any]) -> TextSource:
    """The text source `name` with its options.

    Raises:
        CocomixError: no such source, or options that do not fit it.
    """
    SOURCES.check(name, options)
    return SOURCES[name](**options)


def open_mix(parts: Sequence[tuple[str, float, str, Mapping[str, Any]]], until: str) -> MixSource:
    """A mixture of (name, weight, source, options), which ends with its `first` or after `all` of its sources.

    Raises:
        CocomixError: as `open_source`.
    """
    return MixSource(
        [MixPart(name, weight, open_source(source, options)) for name, weight, source, options in parts], until
    )
