"""Search space: hyper-parameters of the family, and of the request `features`, `lookback` and `horizon`.

`lookback` is a hyper-parameter like any other; `features` takes whole lists of names; `horizon` rewrites the target:
`price_change_1h` with a horizon of 4 is `price_change_4h`, on the very same bars. A trial's parameters merged into the
base request are a request again: everything that is checked there is checked for trials. Free of optuna: the API reads
this.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common_lib.close_names import close_names
from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.contract import Contract
from ml_workbench_service.contracts.experiments import MOST_TRIALS, SearchDimension
from ml_workbench_service.contracts.training import TrainRequest

FEATURES = "features"
HORIZON = "horizon"
_HORIZON = re.compile(r"(?P<measure>[a-z_]+?)(?:_(?P<count>\d+)(?P<unit>[mhd]?))?")


@dataclass(frozen=True)
class Dimension:
    """One thing that a search varies.

    Attributes:
        kind: whole numbers or numbers of a range, or the members of a list.
        low, high: ends of the range, both included.
        step: distance of two values of a range; None: any (of whole numbers: one).
        is_log: whether the logarithm is sampled evenly.
        choices: the list's members, in order.
    """

    name: str
    kind: Literal["int", "float", "choice"]
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that must be usable for all of them to be: every choice, or the range's two ends."""
        if self.kind == "choice":
            return self.choices
        return tuple(dict.fromkeys(self.number(end) for end in (self.low, self.high)))

    @property
    def grid(self) -> tuple[Any, ...] | None:
        """Every value; None where they are not counted (numbers of a range without `step`, or sampled by logarithm)."""
        if self.kind == "choice":
            return self.choices
        step = self.step or (1.0 if self.kind == "int" and not self.is_log else None)
        if step is None:
            return None if self.low < self.high else (self.number(self.low),)
        count = math.floor((self.high - self.low) / step * (1 + 1e-12)) + 1
        return tuple(self.number(self.low + step * place) for place in range(min(count, MOST_TRIALS + 1)))

    def number(self, value: float) -> int | float:
        """A value of the range in its own type."""
        return round(value) if self.kind == "int" else float(value)


def choice_label(choice: Any) -> str:
    """A choice as text, by which samplers and plans name it."""
    return json.dumps(choice)


def dimensions(
    space: Mapping[str, SearchDimension], base: TrainRequest, hyperparameters: type[Contract]
) -> tuple[Dimension, ...]:
    """The space in the family's own types; whether its values are usable is another matter (`variants`).

    Args:
        space: the request's `search_space`.
        base: what every trial is a variation of.
        hyperparameters: the family's.

    Raises:
        DataValidationError: nothing of this name can be varied, or not in this way.
    """
    return tuple(_dimension(name, asked, base, hyperparameters) for name, asked in space.items())


def grid_size(found: Sequence[Dimension]) -> int:
    """Points of the whole grid.

    Raises:
        DataValidationError: a dimension has no countable values, or there are too many points.
    """
    for each in found:
        if each.grid is None:
            raise _at(each.name, "a grid needs `choices`, or `step` beside `low` and `high`; or use the sampler tpe")
    size = math.prod(len(each.grid or ()) for each in found)
    if size > MOST_TRIALS:
        raise DataValidationError.at(
            "body.search_space", f"this grid has over {MOST_TRIALS} points; take fewer values, or the sampler tpe"
        )
    return size


def grid_points(found: Sequence[Dimension]) -> list[dict[str, Any]]:
    """All points, the last dimension varying fastest."""
    names = [each.name for each in found]
    return [dict(zip(names, point, strict=True)) for point in itertools.product(*(each.grid or () for each in found))]


def variants(found: Sequence[Dimension]) -> list[tuple[str, dict[str, Any]]]:
    """One-dimensional variations that must all be usable, each with the path of the value that it tests."""
    return [
        (f"body.search_space.{each.name}" + (f".choices.{place}" if each.kind == "choice" else ""), {each.name: value})
        for each in found
        for place, value in enumerate(each.ends)
    ]


def trial_request(base: TrainRequest, params: Mapping[str, Any]) -> TrainRequest:
    """The base request with a trial's parameters.

    Raises:
        ValueError: (pydantic's) the parameters make no request.
    """
    settings = {name: value for name, value in params.items() if name not in (FEATURES, HORIZON)}
    body = base.model_dump(mode="json", exclude_unset=True)
    body["hyperparameters"] = {**base.hyperparameters, **settings}
    if FEATURES in params:
        body["features"] = list(params[FEATURES])
    if HORIZON in params:
        body["target"] = with_horizon(base.target_names[0], params[HORIZON])
    return TrainRequest.model_validate(body)


def with_horizon(target: str, horizon: int) -> str:
    """`price_change_1h` looks 4 bars ahead as `price_change_4h`; `market_regime` as `market_regime_4`."""
    match = _HORIZON.fullmatch(target)
    assert match is not None, "targets are checked before they are varied"
    return f"{match['measure']}_{horizon}{match['unit'] or ''}"


def _dimension(name: str, asked: SearchDimension, base: TrainRequest, hyperparameters: type[Contract]) -> Dimension:
    if name == FEATURES:
        return _features(asked)
    if name == HORIZON:
        if len(base.target_names) != 1:
            raise _at(
                HORIZON, "horizon varies the bars that one target looks ahead; `base.target` names none or several"
            )
        return _range(name, asked, is_whole=True)
    field = hyperparameters.model_fields.get(name)
    if field is None:
        raise _unknown(name, [*hyperparameters.model_fields, FEATURES, HORIZON])
    if asked.choices is None and field.annotation not in (int, float):
        raise _at(name, f"{name} is not a number; list its values as `choices`")
    return _range(name, asked, is_whole=field.annotation is int)


def _features(asked: SearchDimension) -> Dimension:
    lists = asked.choices or []
    if not lists or not all(isinstance(each, list) and each for each in lists):
        raise _at(
            FEATURES, 'features takes `choices` that are lists of names, such as [["rsi_14"], ["rsi_14", "macd"]]'
        )
    return Dimension(FEATURES, "choice", choices=_distinct(FEATURES, lists))


def _range(name: str, asked: SearchDimension, *, is_whole: bool) -> Dimension:
    if asked.choices is not None:
        if any(isinstance(each, list) for each in asked.choices):
            raise _at(name, f"{name} takes single values, not lists; only features takes lists")
        if name == HORIZON and not all(type(each) is int and each >= 1 for each in asked.choices):
            raise _at(name, "a horizon is a whole number of bars, at least 1")
        return Dimension(name, "choice", choices=_distinct(name, asked.choices))
    assert asked.low is not None
    assert asked.high is not None
    numbers = [asked.low, asked.high, *([] if asked.step is None else [asked.step])]
    if is_whole and not all(float(number).is_integer() for number in numbers):
        raise _at(name, f"{name} is a whole number; so must `low`, `high` and `step` be")
    if name == HORIZON and asked.low < 1:
        raise _at(name, "a horizon is a whole number of bars, at least 1")
    step = asked.step
    high = asked.high if step is None else asked.low + step * math.floor((asked.high - asked.low) / step + 1e-9)
    return Dimension(name, "int" if is_whole else "float", asked.low, high, step, asked.log)


def _distinct(name: str, choices: Sequence[Any]) -> tuple[Any, ...]:
    if len({choice_label(each) for each in choices}) < len(choices):
        raise _at(name, "a choice stands twice; list each once")
    return tuple(choices)


def _unknown(name: str, known: Sequence[str]) -> DataValidationError:
    near = close_names(name, known, n=1, cutoff=0.5)
    return _at(name, "nothing of this name can be varied; " + (f"did you mean {near[0]}?" if near else
               f"there are {', '.join(known)}"), code="unknown_dimension")  # fmt: skip


def _at(name: str, message: str, *, code: str = "invalid") -> DataValidationError:
    return DataValidationError.at(f"body.search_space.{name}", message, code=code)
