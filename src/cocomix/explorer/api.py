"""The routes: each reads a request, has the work done in a thread, and answers JSON."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import anyio
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cocomix import __version__
from cocomix.explorer.catalog import Catalog
from cocomix.explorer.schemas import (
    AskedForModels,
    AskedForSteering,
    AskedOfConcept,
    AskedToCompare,
    AskedToList,
    AskedToName,
    AskedToRead,
    AskedToSteer,
    Comparison,
    ModelReading,
    Models,
    ProblemEvent,
)
from cocomix.explorer.security import Limits
from cocomix.explorer.snippets import copies, read_setting
from cocomix.steering.serialization import from_items
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import parse_json
from cocomix.utils.settings import validate

Kind = TypeVar("Kind", bound=BaseModel)
BROKEN = "the server failed at this; look at the terminal it runs in, then try again"
_log = logging.getLogger(__name__)


class Api:
    """What can be asked of a catalog."""

    def __init__(self, catalog: Catalog, limits: Limits) -> None:
        self.catalog, self.limits = catalog, limits

    def routes(self) -> list[Route]:
        """Every route below /api."""
        get, post = self._get, self._post
        return [
            Route("/api/models", get(AskedForModels, self.models)),
            Route("/api/concepts", get(AskedToList, self.concepts)),
            Route("/api/concept", get(AskedOfConcept, self.concept)),
            Route("/api/read", post(AskedToRead, self.read), methods=["POST"]),
            Route("/api/compare", post(AskedToCompare, self.compare), methods=["POST"]),
            Route("/api/name", post(AskedToName, self.name), methods=["POST"]),
            Route("/api/steering", post(AskedToSteer, self.steering), methods=["POST"]),
            Route("/api/steering/read", post(AskedForSteering, self.steering_read), methods=["POST"]),
            Route("/api/steer", self.steer, methods=["POST"]),
        ]

    def models(self, _asked: AskedForModels) -> BaseModel:
        return Models(models=self.catalog.models(), examples=self.catalog.examples, version=__version__)

    def concepts(self, asked: AskedToList) -> BaseModel:
        how = asked.model_dump(exclude={"model"})
        return self.catalog.open(asked.model).listing(**how)

    def concept(self, asked: AskedOfConcept) -> BaseModel:
        return self.catalog.open(asked.model).dashboard(asked.id)

    def read(self, asked: AskedToRead) -> BaseModel:
        return self._reading(asked.model, asked.text, asked.concept, asked.top)

    def compare(self, asked: AskedToCompare) -> BaseModel:
        left, right = (self._reading(key, asked.text, None, asked.top) for key in (asked.left, asked.right))
        same = [one.token for one in left.tokens] == [one.token for one in right.tokens]
        return Comparison(left=left, right=right, same_tokens=same)

    def name(self, asked: AskedToName) -> BaseModel:
        return self.catalog.open(asked.model).rename(asked.concept, asked.name)

    def steering(self, asked: AskedToSteer) -> BaseModel:
        return copies(self.catalog.entry(asked.model), asked)

    def steering_read(self, asked: AskedForSteering) -> BaseModel:
        return read_setting(asked.text)

    async def steer(self, request: Request) -> Response:
        asked = await _body(request, AskedToSteer)

        def begin() -> Iterator[BaseModel]:
            return self.catalog.open(asked.model).duet(
                asked.prompt,
                from_items(asked.steering),
                tokens=asked.tokens,
                temperature=asked.temperature,
                seed=asked.seed,
            )

        self.limits.take_stream()
        try:
            return EventStream(await self.limits.run(begin), self.limits)
        except BaseException:
            self.limits.leave_stream()
            raise

    def _reading(self, key: str, text: str, concept: int | None, top: int) -> ModelReading:
        opened = self.catalog.open(key)
        began = time.perf_counter()
        reading = opened.read(text, concept=concept, top=top)
        took = 1000 * (time.perf_counter() - began)
        return ModelReading(**dict(reading), model=key, milliseconds=took)

    def _get(self, kind: type[Kind], work: Callable[[Kind], BaseModel]) -> Any:
        async def endpoint(request: Request) -> Response:
            asked = validate(kind, dict(request.query_params), "the address")
            return await self._answer(partial(work, asked))

        return endpoint

    def _post(self, kind: type[Kind], work: Callable[[Kind], BaseModel]) -> Any:
        async def endpoint(request: Request) -> Response:
            return await self._answer(partial(work, await _body(request, kind)))

        return endpoint

    async def _answer(self, work: Callable[[], BaseModel]) -> Response:
        text = await self.limits.run(lambda: work().model_dump_json(by_alias=True))
        return Response(text, media_type="application/json")


class EventStream(StreamingResponse):
    """Events as lines of JSON, each sent when it is there; a client that leaves ends them.

    It owns one of the streams' places, taken before, and gives it back however it ends.
    """

    def __init__(self, events: Iterator[BaseModel], limits: Limits) -> None:
        self._events, self._limits = events, limits
        super().__init__(self._lines(), media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._limits.leave_stream()
            with anyio.CancelScope(shield=True):
                await self._limits.run(getattr(self._events, "close", lambda: None))

    async def _lines(self) -> AsyncIterator[str]:
        try:
            while (event := await self._limits.run(lambda: next(self._events, None))) is not None:
                yield event.model_dump_json() + "\n"
        except CocomixError as error:
            yield ProblemEvent(error=str(error)).model_dump_json() + "\n"
        except Exception:
            _log.exception("a stream broke")
            yield ProblemEvent(error=BROKEN).model_dump_json() + "\n"


async def _body(request: Request, kind: type[Kind]) -> Kind:
    try:
        raw = parse_json(await request.body())
    except ValueError as error:
        raise CocomixError(f"the request is not JSON ({error}); send an object such as {{...}}") from None
    if not isinstance(raw, dict):
        raise CocomixError("the request is JSON but no object; send an object such as {...}")
    return validate(kind, raw, "the request")
