"""What crosses the wire: one class for each request, response and event of a stream, and the errors.

`api.py` says which route takes which. Readings, concept lists and dashboards are answered as `cocomix.analysis`
defines them; everything else is defined here. Bodies are JSON and are checked strictly. Query strings are text, so
their numbers are parsed.
"""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import Response

from cocomix.analysis.channel import ChannelReading
from cocomix.analysis.inspect import Reading
from cocomix.steering.serialization import SharedItem
from cocomix.utils.errors import CocomixError

# --- Requests ---


def _without_surrogates(text: str) -> str:
    """JSON can hold half of a surrogate pair, which no encoding can write."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("it holds half a character; type that one again")
    return text


Text = Annotated[str, AfterValidator(_without_surrogates)]
ModelKey = Annotated[str, Field(description="a model's key, as listed by /api/models")]
Top = Annotated[int, Field(ge=1, le=50, description="concepts and next tokens of each position")]


class RequestBody(BaseModel):
    """Base class of JSON bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class RequestQuery(BaseModel):
    """Base class of query strings."""

    model_config = ConfigDict(extra="forbid")


class ModelsRequest(RequestQuery):
    """`GET /api/models`."""


class ConceptListRequest(RequestQuery):
    """`GET /api/concepts`."""

    model: ModelKey
    q: str = Field(default="", max_length=200)
    sort: str = "predicted"
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=50, ge=1, le=500)


class ConceptRequest(RequestQuery):
    """`GET /api/concept`."""

    model: ModelKey
    id: int


class PresetsRequest(RequestQuery):
    """`GET /api/presets`."""

    model: ModelKey


class ReadRequest(RequestBody):
    """`POST /api/read`."""

    model: ModelKey
    text: Text
    concept: int | None = None
    top: Top = 8


class ChannelRequest(RequestBody):
    """`POST /api/channel`."""

    model: ModelKey
    text: Text
    at: int = Field(description="a token's index in the text, 1 or more")
    top: Top = 8


class CompareRequest(RequestBody):
    """`POST /api/compare`."""

    left: ModelKey
    right: ModelKey
    text: Text
    top: Top = 5


class NameRequest(RequestBody):
    """`POST /api/name`."""

    model: ModelKey
    concept: int
    name: Text = Field(max_length=120)


class SteerRequest(RequestBody):
    """`POST /api/steer` and `/api/steering`."""

    model: ModelKey
    prompt: Text
    steering: list[SharedItem] = Field(max_length=64)
    tokens: int = Field(default=48, ge=1, le=4096)
    temperature: float = Field(default=0.8, ge=0, le=10, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0, lt=1 << 32)


class ParseSteeringRequest(RequestBody):
    """`POST /api/steering/read`."""

    text: Text = Field(max_length=100_000)


# --- Responses ---


class ModelInfo(BaseModel):
    """A student, or a snapshot saved during its training, without its weights."""

    key: str = Field(description="number of the run, student, seed and, for a snapshot, its name")
    label: str
    run: str = Field(description="name of the run's folder")
    student: str
    seed: int
    predicts_concepts: bool
    steerable: bool = Field(description="whether it also mixes predicted concepts in")
    n_concepts: int
    top_k: int
    positions: int
    parameters: int
    has_labels: bool = Field(description="whether the teacher can label the concepts it should have predicted")


class ModelsResponse(BaseModel):
    """Answer to `GET /api/models`."""

    models: list[ModelInfo]
    examples: list[str] = Field(description="beginnings of held-out text")
    version: str


class ChannelResponse(ChannelReading):
    """Answer to `POST /api/channel`."""

    model: str
    milliseconds: float


class ReadResponse(Reading):
    """Answer to `POST /api/read`."""

    model: str
    milliseconds: float


class CompareResponse(BaseModel):
    """Answer to `POST /api/compare`."""

    left: ReadResponse
    right: ReadResponse
    same_tokens: bool
    left_bits_per_byte: float | None = Field(
        description="loss of the text behind its first token, over the UTF-8 bytes of these tokens; null for one token"
    )
    right_bits_per_byte: float | None


class Preset(BaseModel):
    """A concept of the steering gallery."""

    concept: int
    name: str | None
    words: list[str] = Field(description="its own tokens, whose probability is scored, best first")
    score: float = Field(description="output score: `steered` less `unsteered`")
    steered: float
    unsteered: float
    strength: float = Field(description="of the amplification it was scored with")


class PresetsResponse(BaseModel):
    """Answer to `GET /api/presets`."""

    presets: list[Preset] = Field(description="best first")
    scored: int = Field(description="concepts that were scored")


class Snippets(BaseModel):
    """Answer to `POST /api/steering`: a steering setting in forms to use elsewhere."""

    cli: str
    python: str
    json_: str = Field(serialization_alias="json")


# --- Events of the stream that answers `POST /api/steer` ---


class PromptToken(BaseModel):
    """A token of the prompt."""

    id: int
    token: str


class GeneratedToken(BaseModel):
    """A generated token of one of the two texts."""

    id: int
    token: str
    loss: float | None = Field(description="under the judge, nats")
    concepts: dict[int, float] = Field(description="the judge's SAE activation of each steered concept at this token")


class TextSummary(BaseModel):
    """Figures of one of the two texts, without the prompt."""

    perplexity: float | None = Field(description="exp of the mean loss under the judge")
    bits_per_byte: float | None = Field(
        description="the judge's loss over the UTF-8 bytes of the tokens as the vocabulary writes them"
    )
    presence: dict[int, float] = Field(description="share of tokens where the judge's SAE has each concept active")
    distinct: float | None = Field(description="distinct-2: different pairs of neighbouring tokens / all pairs")


class StartEvent(BaseModel):
    """The first event."""

    event: Literal["start"] = "start"
    prompt: list[PromptToken]
    judge: str
    concepts: list[int] = Field(description="the steered concepts")


class TokenEvent(BaseModel):
    """One more token of both texts."""

    event: Literal["token"] = "token"
    index: int
    base: GeneratedToken
    steered: GeneratedToken
    same: bool = Field(description="whether both texts got the same token")


class EndEvent(BaseModel):
    """The last event."""

    event: Literal["end"] = "end"
    base: TextSummary
    steered: TextSummary
    milliseconds: float
    tokens: int


StreamEvent = StartEvent | TokenEvent | EndEvent

# --- Errors ---


class ErrorResponse(BaseModel):
    """Answer to every request that fails."""

    error: str


class ErrorEvent(ErrorResponse):
    """Last event of a stream that failed."""

    event: str = "error"


class RequestError(CocomixError):
    """A request that cannot be answered. Other errors of cocomix are answered with status 400, too."""

    status = 400


class NotFound(RequestError):
    """The model or concept does not exist."""

    status = 404


class TooManyStreams(RequestError):
    """The server already generates as many texts as it may at a time."""

    status = 429


def error_response(status: int, message: str) -> Response:
    """`ErrorResponse` with an HTTP status. A message may quote half characters, which only escapes can carry."""
    return Response(json.dumps({"error": message}), status, media_type="application/json")
