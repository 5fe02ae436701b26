"""Stream entries: byte for byte what pydantic's dump would give, whatever is in them, and the contract again."""

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, PlainSerializer, ValidationError, computed_field, field_serializer

from ml_workbench_service.contracts.agents import AgentMode, Decision
from ml_workbench_service.contracts.contract import Contract, UtcDatetime
from ml_workbench_service.contracts.entries import flatten, row, unflatten
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import (
    AbstainReason,
    Driver,
    Interval,
    Novelty,
    PredictionMetadata,
    PredictionRecord,
    Sample,
)
from ml_workbench_service.contracts.queue import DeploymentNotice
from tests.prediction_records import prediction_record

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False) | st.integers(-5, 5).map(float)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", "null", '"', "\\", "{}", "a\nb\x00", "€ \u2028", "\U0001f4c8", "true", "1.5"]
)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30))])
MOMENTS = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=ZONES)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Or nothing."""
    return st.none() | strategy


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """None, one or two of them."""
    return st.lists(strategy, max_size=2).map(tuple)


COSTS = st.builds(Costs, spread_pips=maybe(NUMBERS), commission_bp=maybe(NUMBERS), swap_long_pips=maybe(NUMBERS))
METADATA = st.builds(
    PredictionMetadata, precision=st.sampled_from(["int8", "fp32"]), data_source=TEXTS, correlation_id=TEXTS,
    volatility=maybe(NUMBERS), strength=maybe(NUMBERS), deployment_id=maybe(TEXTS), costs=maybe(COSTS),
    actions_by_position=maybe(st.tuples(*3 * [st.sampled_from([-1, 0, 1])])),
)  # fmt: skip
RECORDS = st.builds(
    PredictionRecord, prediction_id=TEXTS, model_id=TEXTS, version=TEXTS, version_id=TEXTS,
    role=st.sampled_from(["champion", "candidate"]), symbol=TEXTS, timeframe=TEXTS, target=maybe(TEXTS),
    as_of=MOMENTS, valid_until=MOMENTS, timestamp=MOMENTS, price=maybe(NUMBERS), source=TEXTS,
    sample=st.sampled_from(get_args(Sample)), status=st.sampled_from(["ok", "abstain"]), prediction=maybe(NUMBERS),
    label=maybe(TEXTS), direction=st.sampled_from(["buy", "sell", "hold"]), confidence=maybe(NUMBERS),
    outputs=st.dictionaries(TEXTS, maybe(NUMBERS), max_size=3),
    interval=maybe(st.builds(Interval, level=NUMBERS, lower=NUMBERS, upper=NUMBERS)),
    novelty=maybe(st.builds(Novelty, score=NUMBERS, threshold=NUMBERS, top_features=several(TEXTS))),
    drivers=several(st.builds(Driver, feature=TEXTS, share=NUMBERS)), warnings=several(TEXTS),
    abstain_reasons=several(st.sampled_from(get_args(AbstainReason))), scaling_factor=NUMBERS, metadata=METADATA,
)  # fmt: skip
DECISIONS = st.builds(
    Decision, agent_id=TEXTS, prediction_id=TEXTS, model_id=TEXTS, version=TEXTS, symbol=TEXTS, lane=TEXTS,
    as_of=MOMENTS, valid_until=MOMENTS, price=NUMBERS, expected_cost=NUMBERS,
    action=st.sampled_from(["short", "flat", "long"]), position=st.integers(-1, 1), size=NUMBERS,
    mode=st.sampled_from(get_args(AgentMode)), explored=st.booleans(), reward=maybe(NUMBERS), cost=maybe(NUMBERS),
    cumulative_reward=NUMBERS, exploration_rate=NUMBERS,
)  # fmt: skip
NOTICES = st.builds(
    DeploymentNotice, deployment_id=TEXTS, model_id=TEXTS, version=TEXTS, status=TEXTS, deployment_target=TEXTS,
    at=MOMENTS,
)  # fmt: skip


class Colour(StrEnum):
    """A text with a class of its own."""

    RED = "red"


class Inner(Contract):
    """A part with a moment in it."""

    at: UtcDatetime
    names: dict[str, tuple[Interval, ...]] = {}


class Plain(Contract):
    """Every shape that is written field by field."""

    text: Annotated[str, Field(max_length=9)]
    word: Literal["a", "b"] | None
    flag: bool = True
    moments: tuple[UtcDatetime, ...] = ()
    inner: Inner | None = None
    mixed: list[float] | Interval | None = None


class Leaving(Contract):
    """Needs the dump: leaves a field out where it says nothing."""

    number: float
    remark: str | None = Field(default=None, exclude_if=lambda remark: remark is None)


class AroundLeaving(Contract):
    """Needs the dump, because of what it holds."""

    within: tuple[Leaving, ...]
    choice: Literal[-1, 0, 1, "none"] | None = None
    sign: Literal[-1, 1] | None = None


class Enumerated(Contract):
    """Needs the dump."""

    colour: Colour
    either: str | int


class Unlike(Contract):
    """Needs the dump: a moment in pydantic's own form."""

    at: datetime


class Serialized(Contract):
    """Needs the dump: a field with a serializer, inside another contract."""

    number: float

    @field_serializer("number")
    def _as_text(self, number: float) -> str:
        return f"<{number}>"


class Annotating(Contract):
    """Needs the dump."""

    number: Annotated[float, PlainSerializer(str)]


class Around(Contract):
    """Needs the dump, because of what it holds."""

    within: tuple[Serialized | Annotating, ...]


class Computing(Contract):
    """Needs the dump."""

    number: float

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> float:
        """A field that no constructor takes."""
        return 2 * self.number


class Remembering(Contract):
    """Needs the dump: what it remembers is no field."""

    number: float

    @cached_property
    def half(self) -> float:
        """Lies in the instance's `__dict__` once read."""
        return self.number / 2


class AroundRemembering(Contract):
    """Needs the dump, because of what it holds."""

    within: Remembering


def plainly(contract: Contract) -> list[tuple[bytes, bytes]]:
    """The entry by definition: what pydantic dumps, texts as they are, the rest as JSON, nulls left out."""
    dumped = contract.model_dump(mode="json")
    return [
        (name.encode(), value.encode() if isinstance(value, str) else orjson.dumps(value))
        for name, value in dumped.items()
        if value is not None
    ]


def entry(contract: Contract) -> list[tuple[bytes, bytes]]:
    """The entry as it is sent."""
    encoded = [each.encode() if isinstance(each, str) else each for each in flatten(contract)]
    return list(zip(encoded[::2], encoded[1::2], strict=True))


@given(RECORDS | DECISIONS | NOTICES)
@settings(max_examples=300, deadline=None)
def test_every_entry_is_what_the_plain_way_gives_and_the_contract_again(contract: Contract) -> None:
    assert entry(contract) == plainly(contract)
    assert unflatten(type(contract), dict(entry(contract))) == contract
    names, values = row(contract)
    assert list(zip(map(str.encode, names), values, strict=True)) == plainly(contract)


NOON = datetime(2025, 3, 3, 12, tzinfo=UTC)
DECISION = Decision(
    agent_id="default", prediction_id="p", model_id="m", version="1.0.0", symbol="EUR/USD", lane="live", as_of=NOON,
    valid_until=NOON, price=1.1, action="long", position=1, size=1.0, mode="frozen", explored=False, expected_cost=1e-4,
    reward=None, cost=None, cumulative_reward=0.0, exploration_rate=0.0,
)  # fmt: skip
NOTICE = DeploymentNotice(
    deployment_id="d", model_id="m", version="1.0.0", status="live", deployment_target="local", at=NOON
)


def no_dump(*_: object, **__: object) -> None:
    """Stands for pydantic's dump where it must not be asked."""
    raise AssertionError("a field's type is unknown to contracts.entries: writing the class costs twice the time")


@pytest.mark.parametrize("contract", [prediction_record(), DECISION, NOTICE], ids=lambda each: type(each).__name__)
def test_what_enters_streams_is_written_without_a_dump(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plainly(contract)
    monkeypatch.setattr(type(contract), "model_dump", no_dump)
    assert entry(contract) == expected


MOMENT = datetime(2025, 3, 1, 12, 30, 0, 25, tzinfo=UTC)


@pytest.mark.parametrize(
    "contract",
    [
        Plain(text="x", word=None),
        Plain(text="x", word="b", flag=False, moments=(MOMENT, MOMENT), mixed=[1.0, 2.5]),
        Plain(
            text='"', word="a", mixed=Interval(level=0.9, lower=0, upper=1),
            inner=Inner(at=MOMENT, names={"a": (Interval(level=0.9, lower=-1, upper=1),)}),
        ),
        Leaving(number=1),
        Leaving(number=1, remark="x"),
        AroundLeaving(within=(Leaving(number=1), Leaving(number=2, remark="x")), choice="none", sign=-1),
        AroundLeaving(within=(), choice=-1),
        Enumerated(colour=Colour.RED, either="1"),
        Enumerated(colour=Colour.RED, either=1),
        Unlike(at=MOMENT.astimezone(timezone(timedelta(hours=2)))),
        Serialized(number=1.5),
        Around(within=(Serialized(number=1.5), Annotating(number=2))),
        Computing(number=2),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_every_kind_of_field_is_written_as_pydantic_dumps_it(contract: Contract) -> None:
    assert entry(contract) == plainly(contract)
    assert row(contract)[1] == [value for _, value in plainly(contract)]


def test_what_a_part_remembers_is_not_written() -> None:
    contract = AroundRemembering(within=Remembering(number=3))
    assert contract.within.half == 1.5
    assert entry(contract) == [(b"within", b'{"number":3.0}')]


def test_other_fields_of_an_entry_are_passed_over() -> None:
    record = prediction_record()
    fields = {**dict(entry(record)), b"correlation_id": b"c", b"enqueued_at": b"now", b"\xff": b"\xff"}
    assert unflatten(PredictionRecord, fields) == record


@pytest.mark.parametrize(
    "damage",
    [
        {b"price": b""}, {b"price": b"1.1.1"}, {b"price": b"\xff"}, {b"outputs": b"{"}, {b"as_of": b"2025"},
        {b"metadata": b"{}"},
    ],
    ids=lambda damage: str(dict(damage)),
)  # fmt: skip
def test_a_damaged_entry_is_refused(damage: dict[bytes, bytes]) -> None:
    with pytest.raises(ValidationError):
        unflatten(PredictionRecord, {**dict(entry(prediction_record())), **damage})


def test_an_entry_that_lacks_a_field_is_refused_where_the_field_is_no_null() -> None:
    fields = dict(entry(prediction_record()))
    del fields[b"price"]
    assert unflatten(PredictionRecord, fields).price is None
    del fields[b"symbol"]
    with pytest.raises(ValidationError):
        unflatten(PredictionRecord, fields)
