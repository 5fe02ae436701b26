"""Plans: what a call does, step by step and without doing it, so that one text serves the sync and the async client.

A method of the client is a generator that yields effects (`Send`, `Pause`, `Open`, `ReadLine` in `wire`) and returns
what the caller gets; a *flow* also yields `Emit`, one item for the caller. A carrier carries the effects out: `Now` in
this thread, `Later` in the event loop. Which of the two stands in an object's type (`Linked[Sync]`, `Linked[Async]`),
and the descriptors below turn the one generator into `Callable[P, T]` for one and `Callable[P, Awaitable[T]]` for the
other: written once, typed twice.

    class Model(Linked[M]):
        @operation(routes.PREDICT)
        def predict(self, price: float) -> Plan[Record]:
            answer = yield from self.ask(routes.PREDICT, …)
            return Record.of(answer)

    wb.model("x").predict(1.1)            Record
    await awb.model("x").predict(1.1)     Record
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from functools import cached_property, update_wrapper
from inspect import Parameter, Signature, signature
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, get_args, overload

import httpx

from ml_workbench_client.routes import Route

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")
Out = TypeVar("Out", covariant=True)
Plan = Generator[Any, Any, T]
"""Yields effects, returns what the caller gets."""


class Sync:
    """Marks what answers at once."""


class Async:
    """Marks what is awaited."""


class Effect(Protocol[Out]):
    """One thing that a plan asks to be done, in either way."""

    def now(self, wire: Any) -> Out:
        """Does it in this thread."""
        ...

    async def later(self, wire: Any) -> Out:
        """Does it in the event loop."""
        ...


class Emit(Generic[T]):
    """One item of a flow, on its way to the caller."""

    def __init__(self, item: T) -> None:
        self.item = item


class Flow(Generic[T]):
    """A plan that emits items of one type."""

    def __init__(self, steps: Plan[None]) -> None:
        self.steps = steps


def do(effect: Effect[T]) -> Plan[T]:
    """The effect's outcome, with its type."""
    outcome: T = yield effect
    return outcome


class Conversation(Generic[T]):
    """A plan under way: its next effect, until it has a result."""

    def __init__(self, plan: Plan[T]) -> None:
        self._plan = plan
        self.is_over = False
        self.effect: Any = None
        self.result: Any = None
        self._advance(lambda: next(plan))

    def answer(self, outcome: Any) -> None:
        """Hands the outcome of the effect to the plan."""
        self._advance(lambda: self._plan.send(outcome))

    def fail(self, error: httpx.TransportError) -> None:
        """Tells the plan that the effect failed; it may try again."""
        self._advance(lambda: self._plan.throw(error))

    def close(self) -> None:
        """Ends the plan where it stands."""
        self._plan.close()

    def _advance(self, step: Callable[[], Any]) -> None:
        try:
            self.effect = step()
        except StopIteration as ended:
            self.is_over, self.result = True, ended.value


class Carrier(Protocol):
    """Carries plans out: a plan to its result, a flow to an iterator, each sync or async."""

    def run(self, plan: Plan[Any]) -> Any:
        """The plan's result, or what is awaited for it."""
        ...

    def iterate(self, flow: Flow[Any]) -> Any:
        """An iterator, or an async one, over what the flow emits."""
        ...


class Linked(Generic[M]):
    """What holds a link to a service; `M` is `Sync` or `Async`."""

    _carrier: Carrier


class _LeftOut:
    def __repr__(self) -> str:
        return "…"


LEFT_OUT = _LeftOut()
"""What a signature shows of a keyword that is not sent unless it is given: the service has the default."""


class _Described:
    """A descriptor that carries its function's name, words and routes."""

    def __init__(self, function: Callable[..., Any], routes: tuple[Route, ...]) -> None:
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.routes = routes
        self._function = function

    @cached_property
    def shown_signature(self) -> Signature:
        """What `help` and completion show: keyword arguments one by one, and what the caller gets."""
        found = signature(self._function)
        parameters = list(found.parameters.values())[1:]
        if parameters and parameters[-1].kind is Parameter.VAR_KEYWORD:
            (fields,) = get_args(parameters.pop().annotation)
            parameters += [
                Parameter(name, Parameter.KEYWORD_ONLY, default=LEFT_OUT, annotation=kind)
                for name, kind in fields.__annotations__.items()
            ]
        return Signature(parameters, return_annotation=get_args(found.return_annotation)[-1])

    def _named(self, call: Callable[..., Any]) -> Any:
        """The bound method, by the function's name, words and signature."""
        update_wrapper(call, self._function)
        del call.__wrapped__  # type: ignore[attr-defined]
        call.__signature__ = self.shown_signature  # type: ignore[attr-defined]
        return call


class Operation(_Described, Generic[P, T]):
    """A method: one plan, called or awaited by whoever holds it."""

    def __init__(self, plan: Callable[Concatenate[Any, P], Plan[T]], routes: tuple[Route, ...]) -> None:
        super().__init__(plan, routes)
        self.plan = plan

    @overload
    def __get__(self, instance: None, owner: type) -> "Operation[P, T]": ...
    @overload
    def __get__(self, instance: Linked[Sync], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Linked[Async], owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return instance._carrier.run(self.plan(instance, *args, **kwargs))

        return self._named(call)


class Reading(_Described, Generic[T]):
    """An attribute that is read from the service each time: `model.card`, `await model.card`."""

    def __init__(self, plan: Callable[[Any], Plan[T]], routes: tuple[Route, ...]) -> None:
        super().__init__(plan, routes)
        self.plan = plan

    @overload
    def __get__(self, instance: None, owner: type) -> "Reading[T]": ...
    @overload
    def __get__(self, instance: Linked[Sync], owner: type) -> T: ...
    @overload
    def __get__(self, instance: Linked[Async], owner: type) -> Awaitable[T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance._carrier.run(self.plan(instance))


class Following(_Described, Generic[P, T]):
    """A method whose answer comes item by item: an iterator, or an async one."""

    def __init__(self, flow: Callable[Concatenate[Any, P], Flow[T]], routes: tuple[Route, ...]) -> None:
        super().__init__(flow, routes)
        self.flow = flow

    @overload
    def __get__(self, instance: None, owner: type) -> "Following[P, T]": ...
    @overload
    def __get__(self, instance: Linked[Sync], owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, instance: Linked[Async], owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return instance._carrier.iterate(self.flow(instance, *args, **kwargs))

        return self._named(call)


def operation(*routes: Route) -> Callable[[Callable[Concatenate[Any, P], Plan[T]]], Operation[P, T]]:
    """Makes a method of a plan; `routes` are the operations of the service that it may send."""
    return lambda plan: Operation(plan, routes)


def reading(*routes: Route) -> Callable[[Callable[[Any], Plan[T]]], Reading[T]]:
    """Makes an attribute of a plan that only reads."""
    return lambda plan: Reading(plan, routes)


def following(*routes: Route) -> Callable[[Callable[Concatenate[Any, P], Flow[T]]], Following[P, T]]:
    """Makes a method of a flow."""
    return lambda flow: Following(flow, routes)
