"""The routes below /api: each validates a request, does the work in a thread and answers JSON.

`Api` maps routes to methods; a method finds its model in the catalog and calls it. Steering answers with a stream:
one JSON object a line, sent as soon as it is known (`EventStream`). `Limits` bounds how much is done at a time.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cocomix import __version__
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.schemas import (
    ChannelRequest,
    ChannelResponse,
    CompareRequest,
    CompareResponse,
    ConceptListRequest,
    ConceptRequest,
    ErrorEvent,
    ModelsRequest,
    ModelsResponse,
    NameRequest,
    ParseSteeringRequest,
    PresetsRequest,
    ReadRequest,
    ReadResponse,
    SteerRequest,
    TooManyStreams,
)
from cocomix.explorer.snippets import parse_setting, snippets
from cocomix.steering.serialization import from_items
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import parse_json
from cocomix.utils.settings import validate

Schema = TypeVar("Schema", bound=BaseModel)
Result = TypeVar("Result")
THREADS, STREAMS = 8, 4
"""Each model runs for one request at a time; more threads let short requests to other models pass a long one."""
SERVER_ERROR = "the server failed at this; look at the terminal it runs in, then try again"
_log = logging.getLogger(__name__)


class Limits:
    """How much one server does at a time.

    Args:
        threads: requests worked on at a time; further ones wait.
        streams: texts generated at a time; a further one is refused.
    """

    def __init__(self, *, threads: int = THREADS, streams: int = STREAMS) -> None:
        self._threads = anyio.CapacityLimiter(threads)
        self._max_streams, self._open_streams = streams, 0

    async def run_in_thread(self, work: Callable[[], Result]) -> Result:
        """The result of `work`."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    def acquire_stream(self) -> None:
        """Reserve a stream until `release_stream`; call it in the event loop only.

        Raises:
            TooManyStreams: all are taken.
        """
        if self._open_streams >= self._max_streams:
            raise TooManyStreams(
                f"{self._max_streams} texts are being written already; wait until one is done, or stop one"
            )
        self._open_streams += 1

    def release_stream(self) -> None:
        """Release a reserved stream."""
        self._open_streams -= 1


class Api:
    """The routes over a catalog."""

    def __init__(self, catalog: ModelCatalog, limits: Limits) -> None:
        self.catalog, self.limits = catalog, limits

    def routes(self) -> list[Route]:
        """Every route below /api."""
        get, post = self._get, self._post
        return [
            Route("/api/models", get(ModelsRequest, self.models)),
            Route("/api/concepts", get(ConceptListRequest, self.concepts)),
            Route("/api/concept", get(ConceptRequest, self.concept)),
            Route("/api/presets", get(PresetsRequest, self.presets)),
            Route("/api/read", post(ReadRequest, self.read), methods=["POST"]),
            Route("/api/channel", post(ChannelRequest, self.channel), methods=["POST"]),
            Route("/api/compare", post(CompareRequest, self.compare), methods=["POST"]),
            Route("/api/name", post(NameRequest, self.name), methods=["POST"]),
            Route("/api/steering", post(SteerRequest, self.steering), methods=["POST"]),
            Route("/api/steering/read", post(ParseSteeringRequest, self.parse_steering), methods=["POST"]),
            Route("/api/steer", self.steer, methods=["POST"]),
        ]

    def models(self, _request: ModelsRequest) -> BaseModel:
        return ModelsResponse(models=self.catalog.models(), examples=self.catalog.examples, version=__version__)

    def concepts(self, request: ConceptListRequest) -> BaseModel:
        return self.catalog.open(request.model).list_concepts(**request.model_dump(exclude={"model"}))

    def concept(self, request: ConceptRequest) -> BaseModel:
        return self.catalog.open(request.model).dashboard(request.id)

    def presets(self, request: PresetsRequest) -> BaseModel:
        return self.catalog.open(request.model).presets()

    def read(self, request: ReadRequest) -> BaseModel:
        return self._read(request.model, request.text, request.concept, request.top)

    def channel(self, request: ChannelRequest) -> BaseModel:
        session, began = self.catalog.open(request.model), time.perf_counter()
        found = session.read_channel(request.text, at=request.at, top=request.top)
        milliseconds = 1000 * (time.perf_counter() - began)
        return ChannelResponse(**dict(found), model=request.model, milliseconds=milliseconds)

    def compare(self, request: CompareRequest) -> BaseModel:
        left, right = (self._read(key, request.text, None, request.top) for key in (request.left, request.right))
        same = [token.token for token in left.tokens] == [token.token for token in right.tokens]
        bits = {
            f"{side}_bits_per_byte": self.catalog.open(reading.model).bits_per_byte(request.text, reading)
            for side, reading in (("left", left), ("right", right))
        }
        return CompareResponse(left=left, right=right, same_tokens=same, **bits)

    def name(self, request: NameRequest) -> BaseModel:
        return self.catalog.open(request.model).rename(request.concept, request.name)

    def steering(self, request: SteerRequest) -> BaseModel:
        return snippets(self.catalog.entry(request.model), request)

    def parse_steering(self, request: ParseSteeringRequest) -> BaseModel:
        return parse_setting(request.text)

    async def steer(self, http_request: Request) -> Response:
        request = await _parse_body(http_request, SteerRequest)

        def begin() -> Iterator[BaseModel]:
            return self.catalog.open(request.model).generate_pair(
                request.prompt,
                from_items(request.steering),
                tokens=request.tokens,
                temperature=request.temperature,
                seed=request.seed,
            )

        self.limits.acquire_stream()
        try:
            return EventStream(await self.limits.run_in_thread(begin), self.limits)
        except BaseException:
            self.limits.release_stream()
            raise

    def _read(self, key: str, text: str, concept: int | None, top: int) -> ReadResponse:
        session = self.catalog.open(key)
        began = time.perf_counter()
        reading = session.read(text, concept=concept, top=top)
        milliseconds = 1000 * (time.perf_counter() - began)
        return ReadResponse(**dict(reading), model=key, milliseconds=milliseconds)

    def _get(self, schema: type[Schema], work: Callable[[Schema], BaseModel]) -> Any:
        async def endpoint(http_request: Request) -> Response:
            request = validate(schema, dict(http_request.query_params), "the address")
            return await self._respond(partial(work, request))

        return endpoint

    def _post(self, schema: type[Schema], work: Callable[[Schema], BaseModel]) -> Any:
        async def endpoint(http_request: Request) -> Response:
            return await self._respond(partial(work, await _parse_body(http_request, schema)))

        return endpoint

    async def _respond(self, work: Callable[[], BaseModel]) -> Response:
        text = await self.limits.run_in_thread(lambda: work().model_dump_json(by_alias=True))
        return Response(text, media_type="application/json")


class EventStream(StreamingResponse):
    """Events as lines of JSON; it stops when the client disconnects.

    The caller has reserved a stream; it is released here, however the stream ends.
    """

    def __init__(self, events: Iterator[BaseModel], limits: Limits) -> None:
        self._events, self._limits = events, limits
        super().__init__(self._lines(), media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._limits.release_stream()
            with anyio.CancelScope(shield=True):
                await self._limits.run_in_thread(getattr(self._events, "close", lambda: None))

    async def _lines(self) -> AsyncIterator[str]:
        try:
            while (event := await self._limits.run_in_thread(lambda: next(self._events, None))) is not None:
                yield event.model_dump_json() + "\n"
        except CocomixError as error:
            yield ErrorEvent(error=str(error)).model_dump_json() + "\n"
        except Exception:
            _log.exception("a stream failed")
            yield ErrorEvent(error=SERVER_ERROR).model_dump_json() + "\n"


async def _parse_body(http_request: Request, schema: type[Schema]) -> Schema:
    try:
        raw = parse_json(await http_request.body())
    except ValueError as error:
        raise CocomixError(f"the request is not JSON ({error}); send an object such as {{...}}") from None
    if not isinstance(raw, dict):
        raise CocomixError("the request is JSON but not an object; send an object such as {...}")
    return validate(schema, raw, "the request")
