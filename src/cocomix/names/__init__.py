"""Names for concepts: from the tokens that tell them apart, checked on two halves of the text, or none."""

from cocomix.names.automatic import name_concepts
from cocomix.names.llm import name_with
from cocomix.names.occurrences import Occurrences, observe
from cocomix.names.record import (
    ConceptName,
    FoundNames,
    Names,
    Passage,
    TokenScore,
    edit_name,
    read_names,
    write_found,
)

__all__ = [
    "ConceptName",
    "FoundNames",
    "Names",
    "Occurrences",
    "Passage",
    "TokenScore",
    "edit_name",
    "name_concepts",
    "name_with",
    "observe",
    "read_names",
    "write_found",
]
