"""What is answered, where it is nothing that another package has a class for."""

from pydantic import BaseModel, Field

from cocomix.analysis.inspect import Reading
from cocomix.explorer.catalog import ModelInfo


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
