"""Wire: the one seam to httpx. Requests and answers as data, the effects that plans yield, and their two carriers."""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from ml_workbench_client.plans import Conversation, Emit, Flow, Plan
from ml_workbench_client.routes import Route

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One request as data, its body as the bytes that are sent each time."""

    route: Route
    path: str
    query: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: float | None = None  # between two bytes of the answer; None: the client's own

    def build(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """As httpx sends it."""
        timeout = httpx.USE_CLIENT_DEFAULT if self.timeout_s is None else httpx.Timeout(self.timeout_s, connect=5.0)
        return client.build_request(
            self.route.method,
            self.path,
            params=self.query or None,
            content=self.content,
            headers=self.headers,
            timeout=timeout,
        )


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(frozen=True)
class Lines:
    """An answer that comes line by line; `ReadLine` gives the next."""

    status: int
    headers: httpx.Headers
    each: Any  # an iterator of lines, sync or async as its client


class Wire:
    """The sync client, with what is open of it."""

    def __init__(self, client: httpx.Client, opened: ExitStack) -> None:
        self.client, self.opened = client, opened


class AsyncWire:
    """The async client, with what is open of it."""

    def __init__(self, client: httpx.AsyncClient, opened: AsyncExitStack) -> None:
        self.client, self.opened = client, opened


@dataclass(frozen=True)
class Send:
    """Sends a request and reads its answer."""

    request: Request

    def now(self, wire: Wire) -> Answer:
        """In this thread."""
        found = wire.client.send(self.request.build(wire.client))
        return Answer(found.status_code, found.headers, found.content)

    async def later(self, wire: AsyncWire) -> Answer:
        """In the event loop."""
        found = await wire.client.send(self.request.build(wire.client))
        return Answer(found.status_code, found.headers, found.content)


@dataclass(frozen=True)
class Open:
    """Sends a request whose answer is read line by line; a refusal comes as a whole answer."""

    request: Request

    def now(self, wire: Wire) -> Lines | Answer:
        """In this thread."""
        found = wire.client.send(self.request.build(wire.client), stream=True)
        wire.opened.callback(found.close)
        if found.status_code >= 400:
            return Answer(found.status_code, found.headers, found.read())
        return Lines(found.status_code, found.headers, found.iter_lines())

    async def later(self, wire: AsyncWire) -> Lines | Answer:
        """In the event loop."""
        found = await wire.client.send(self.request.build(wire.client), stream=True)
        wire.opened.push_async_callback(found.aclose)
        if found.status_code >= 400:
            return Answer(found.status_code, found.headers, await found.aread())
        return Lines(found.status_code, found.headers, found.aiter_lines())


@dataclass(frozen=True)
class ReadLine:
    """The next line; None at the end."""

    lines: Lines

    def now(self, wire: Wire) -> str | None:
        """In this thread."""
        return next(self.lines.each, None)

    async def later(self, wire: AsyncWire) -> str | None:
        """In the event loop."""
        return await anext(self.lines.each, None)


@dataclass(frozen=True)
class Pause:
    """Waits."""

    seconds: float

    def now(self, wire: Wire) -> None:
        """In this thread."""
        time.sleep(self.seconds)

    async def later(self, wire: AsyncWire) -> None:
        """In the event loop."""
        await asyncio.sleep(self.seconds)


class Now:
    """Carries plans out in the calling thread; its connections end with the last object that holds it."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        weakref.finalize(self, client.close)

    def run(self, plan: Plan[T]) -> T:
        """The plan's result."""
        talk = Conversation(plan)
        with ExitStack() as opened:
            wire = Wire(self.client, opened)
            while not talk.is_over:
                self._step(talk, wire)
        result: T = talk.result
        return result

    def iterate(self, flow: Flow[T]) -> Iterator[T]:
        """What the flow emits."""
        talk = Conversation(flow.steps)
        with ExitStack() as opened:
            opened.callback(talk.close)
            wire = Wire(self.client, opened)
            while not talk.is_over:
                if isinstance(talk.effect, Emit):
                    yield talk.effect.item
                    talk.answer(None)
                else:
                    self._step(talk, wire)

    def _step(self, talk: Conversation[Any], wire: Wire) -> None:
        try:
            outcome = talk.effect.now(wire)
        except httpx.TransportError as error:
            talk.fail(error)
        else:
            talk.answer(outcome)


class Later:
    """Carries plans out in the running event loop."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def run(self, plan: Plan[T]) -> T:
        """The plan's result."""
        talk = Conversation(plan)
        async with AsyncExitStack() as opened:
            wire = AsyncWire(self.client, opened)
            while not talk.is_over:
                await self._step(talk, wire)
        result: T = talk.result
        return result

    async def iterate(self, flow: Flow[T]) -> AsyncIterator[T]:
        """What the flow emits."""
        talk = Conversation(flow.steps)
        async with AsyncExitStack() as opened:
            opened.callback(talk.close)
            wire = AsyncWire(self.client, opened)
            while not talk.is_over:
                if isinstance(talk.effect, Emit):
                    yield talk.effect.item
                    talk.answer(None)
                else:
                    await self._step(talk, wire)

    async def _step(self, talk: Conversation[Any], wire: AsyncWire) -> None:
        try:
            outcome = await talk.effect.later(wire)
        except httpx.TransportError as error:
            talk.fail(error)
        else:
            talk.answer(outcome)
