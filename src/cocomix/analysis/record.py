"""Names of concepts on disk: `names.json` holds what was found, `names-edited.json` what people call them.

Two files, so that finding names again never touches an edit. Both belong to one autoencoder, by its checksum: after
it was trained again concept 12 is another concept. Edits are kept under the checksum they were made for, so they are
back when that autoencoder is.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, write_json, write_text

FOUND, EDITED = "names.json", "names-edited.json"


class TokenScore(BaseModel):
    """A token that distinguishes a concept."""

    token: str
    score: float = Field(description="nats it adds to the divergence of the concept's tokens from all tokens")


class Passage(BaseModel):
    """A place where a concept is most active."""

    before: str
    token: str
    after: str
    activation: float


class ConceptName(BaseModel):
    """One concept, what it is called, and why."""

    concept: int
    name: str | None = Field(default=None, description="null where none would be honest; see `why`")
    source: Literal["tokens", "llm", "edited"] | None = None
    edited: bool = False
    why: str = Field(default="", description="why there is no name")
    occurrences: int = Field(default=0, description="positions at which it is active")
    share: float = Field(default=0.0, description="of all positions seen")
    stability: float | None = Field(default=None, description="0 to 1: do two halves of the text name it alike")
    coverage: float | None = Field(
        default=None, description="share of its positions at which a token of an automatic name is"
    )
    kind: Literal["token", "next"] = Field(default="token", description="which tokens tell it apart")
    tokens: list[TokenScore] = Field(default_factory=list, description="tokens it is active at, best first")
    next_tokens: list[TokenScore] = Field(default_factory=list, description="tokens after those, best first")
    passages: list[Passage] = Field(default_factory=list, description="strongest first, at most one a window")


class FoundNames(BaseModel):
    """All concepts of one autoencoder, as found in some text."""

    format: Literal[1] = 1
    sae: str = Field(description="checksum of the autoencoder's weights")
    tokens: str = Field(description="checksum of the token shards")
    split: str
    windows: int
    positions: int
    concepts: list[ConceptName] = Field(description="in order, all C of them")


class Names:
    """Names of a run's concepts, edits first; empty where none were made for this autoencoder."""

    def __init__(self, found: FoundNames | None, edits: dict[int, str]) -> None:
        self.found, self.edits = found, edits

    def of(self, concept: int) -> ConceptName:
        """What is known of `concept`; a bare record where nothing is."""
        all_found = [] if self.found is None else self.found.concepts
        known = all_found[concept] if 0 <= concept < len(all_found) else ConceptName(concept=concept)
        if concept not in self.edits:
            return known
        edit = {"name": self.edits[concept], "source": "edited", "edited": True, "why": "", "coverage": None}
        return known.model_copy(update=edit)

    def name(self, concept: int) -> str | None:
        """Its name, if it has one."""
        return self.of(concept).name


def read_names(folder: Path, sae: str) -> Names:
    """Names kept in the run `folder` for the autoencoder with checksum `sae`.

    Raises:
        CocomixError: a file is damaged.
    """
    path, found = folder / FOUND, None
    if path.exists():
        try:
            found = FoundNames.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise CocomixError(f"{path} is damaged; delete it and run `cocomix name` again") from error
    mine = found if found is not None and found.sae == sae else None
    return with_edits(folder, sae, mine)


def with_edits(folder: Path, sae: str, found: FoundNames | None) -> Names:
    """`read_names` where what was found is known already.

    Raises:
        CocomixError: the file of edits is damaged.
    """
    return Names(found, {int(concept): name for concept, name in _edits(folder).get(sae, {}).items()})


def write_found(folder: Path, found: FoundNames) -> None:
    """Replace what was found before; edits stay."""
    write_text(folder / FOUND, found.model_dump_json(indent=1))


def edit_name(folder: Path, sae: str, concept: int, name: str) -> None:
    """Call `concept` `name` from now on; an empty name takes the edit back.

    Raises:
        CocomixError: the file of edits is damaged.
    """
    edits = _edits(folder)
    mine = edits.setdefault(sae, {})
    if name.strip():
        mine[str(concept)] = name.strip()
    else:
        mine.pop(str(concept), None)
    write_json(folder / EDITED, {"format": 1, "edited": edits})


def _edits(folder: Path) -> dict[str, Any]:
    """Names by concept by checksum of the autoencoder."""
    path = folder / EDITED
    if not path.exists():
        return {}
    try:
        edits = read_json(path)["edited"]
        return {sae: {str(int(c)): str(name) for c, name in names.items()} for sae, names in edits.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CocomixError(f"{path} is damaged; mend it by hand or delete it, the edits in it are lost then") from error
