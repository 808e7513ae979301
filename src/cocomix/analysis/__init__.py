"""What the concepts of a student are: names, readings of a text, an index, dashboards."""

from cocomix.analysis.atlas_record import Atlas, AtlasKey, read_atlas, write_atlas
from cocomix.analysis.concept_index import TOKENS, build
from cocomix.analysis.dashboards import Dashboard, Dashboards
from cocomix.analysis.effects import measured, promoted
from cocomix.analysis.inspect import Odds, PredictedConcept, Reading, TokenReading, ablated, check_length, read_text
from cocomix.analysis.listing import SORTS, Catalogue, ConceptRow, Listing
from cocomix.analysis.llm import name_with
from cocomix.analysis.naming import name_concepts
from cocomix.analysis.occurrences import Occurrences, observe
from cocomix.analysis.record import (
    ConceptName,
    FoundNames,
    Names,
    Passage,
    TokenScore,
    edit_name,
    read_names,
    write_found,
)
from cocomix.analysis.show import print_reading

__all__ = [
    "SORTS",
    "TOKENS",
    "Atlas",
    "AtlasKey",
    "Catalogue",
    "ConceptName",
    "ConceptRow",
    "Dashboard",
    "Dashboards",
    "FoundNames",
    "Listing",
    "Names",
    "Occurrences",
    "Odds",
    "Passage",
    "PredictedConcept",
    "Reading",
    "TokenReading",
    "TokenScore",
    "ablated",
    "build",
    "check_length",
    "edit_name",
    "measured",
    "name_concepts",
    "name_with",
    "observe",
    "print_reading",
    "promoted",
    "read_atlas",
    "read_names",
    "read_text",
    "write_atlas",
    "write_found",
]
