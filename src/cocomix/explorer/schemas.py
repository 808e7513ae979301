"""What can be asked, checked: one class a request."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cocomix.analysis.inspect import Reading
from cocomix.explorer.catalog import ModelInfo
from cocomix.steering.serialization import SharedItem


def _whole_characters(text: str) -> str:
    """JSON can hold halves of characters, which no encoding can."""
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise ValueError("it holds half a character; type that one again")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Key = Annotated[str, Field(description="a model's key, of /api/models")]
Top = Annotated[int, Field(ge=1, le=50, description="concepts and next tokens of each position")]


class Asked(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class AskedToRead(Asked):
    """`POST /api/read`."""

    model: Key
    text: Text
    concept: int | None = None
    top: Top = 8


class AskedToCompare(Asked):
    """`POST /api/compare`."""

    left: Key
    right: Key
    text: Text
    top: Top = 5


class AskedToName(Asked):
    """`POST /api/name`."""

    model: Key
    concept: int
    name: Text = Field(max_length=120)


class AskedToSteer(Asked):
    """`POST /api/steer` and `/api/steering`."""

    model: Key
    prompt: Text
    steering: list[SharedItem] = Field(max_length=64)
    tokens: int = Field(default=48, ge=1, le=4096)
    temperature: float = Field(default=0.8, ge=0, le=10, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=1 << 32)


class AskedForSteering(Asked):
    """`POST /api/steering/read`."""

    text: Text = Field(max_length=100_000)


class AskedForModels(BaseModel):
    """`GET /api/models`; the queries of addresses are text, to be read as what they stand for."""

    model_config = ConfigDict(extra="forbid")


class AskedToList(AskedForModels):
    """`GET /api/concepts`."""

    model: Key
    q: str = Field(default="", max_length=200)
    sort: str = "predicted"
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=50, ge=1, le=500)


class AskedOfConcept(AskedForModels):
    """`GET /api/concept`."""

    model: Key
    id: int


# What is answered, where it is nothing that another package has a class for.


class Models(BaseModel):
    """To `GET /api/models`."""

    models: list[ModelInfo]
    examples: list[str] = Field(description="starts of held-out text")
    version: str


class ModelReading(Reading):
    """To `POST /api/read`."""

    model: str
    milliseconds: float


class Comparison(BaseModel):
    """To `POST /api/compare`."""

    left: ModelReading
    right: ModelReading
    same_tokens: bool


class Copies(BaseModel):
    """To `POST /api/steering`: a setting to be used elsewhere."""

    cli: str
    python: str
    json_: str = Field(serialization_alias="json")


class Problem(BaseModel):
    """To everything that cannot be answered; in a stream, its last line."""

    error: str


class ProblemEvent(Problem):
    """What ends a stream that broke."""

    event: str = "error"
