"""Request form: out of what the service can do: families with their hyper-parameters, bars, features, targets."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from common_lib.exceptions import DataValidationError
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import card, note, warnings
from ml_workbench_client.page.components.schema_form import SchemaForm
from ml_workbench_client.page.components.table import table
from ml_workbench_client.page.shell import Visit
from ml_workbench_service.contracts.market_data import FeatureList
from ml_workbench_service.contracts.models import FamilyDescription, ModelSummary, ModelTypeList
from ml_workbench_service.contracts.reading_reports import Series, SeriesList

MEASURES = {
    "time_series": ("price_change", "log_return", "volatility"),
    "classification": ("direction", "triple_barrier", "market_regime"),
    "feature_engineering": ("price_change", "log_return", "direction", "volatility"),
}
"""Of each type that has a target, those that it is used with, the usual one first; others can be written."""
SIDES_OF = ("price_change", "log_return", "direction", "triple_barrier")
"""Measures whose forecasts give a side that a classifier may follow."""
NO_PRIMARY = ""
FIRST_FEATURES = ("sma_20", "rsi_14", "macd", "bb_width_20")
DEFAULT_SPLIT = 0.2
EXPRESSIONS = "Choose, or write your own and press Enter: zscore(close, 50)"


@dataclass(frozen=True)
class Offer:
    """What there is to train with."""

    types: ModelTypeList
    series: SeriesList
    features: FeatureList
    models: tuple[ModelSummary, ...]


async def offered(visit: Visit) -> Offer:
    """What there is, asked for at once."""
    types, series, features, models = await asyncio.gather(
        visit.bench.model_types, visit.bench.data, visit.bench.feature_catalogue, visit.bench.models().all()
    )
    return Offer(types, series, features, tuple(models))


class RequestForm:
    """The fields of a training request; whoever sends it adds its own below."""

    usual_name = "My first model"

    def __init__(self, visit: Visit, offer: Offer) -> None:
        self._visit, self._offer = visit, offer
        self._form: SchemaForm | None = None
        self._what()
        self._data()
        with card("Hyper-parameters", aside="what is left as it is keeps the service's default"):
            self._parameters = ui.element("div").classes("part")
        self._further()
        self._below()
        self._type_chosen()
        self._series_chosen()

    def _below(self) -> None:
        """What stands below the fields."""

    def _describe(self, family: FamilyDescription) -> None:
        """What else follows from the family."""

    # ---- the fields

    def _what(self) -> None:
        types = {each.model_type: words.readable(each.model_type) for each in self._offer.types.model_types}
        with card("What"):
            with ui.element("div").classes("field-grid"):
                self._what_fields(types)
            self._about = note("")

    def _what_fields(self, types: dict[str, str]) -> None:
        self._name = ui.input("Name", value=self.usual_name)
        self._type = ui.select(types, value=next(iter(types)), label="Type", on_change=self._type_chosen)
        self._family = ui.select([], label="Family", on_change=self._family_chosen)
        self._measure = ui.select([], label="Target", new_value_mode="add-unique")
        self._horizon = ui.number("Bars ahead", value=1, min=1, max=9999, precision=0)
        self._primary = ui.select(
            {NO_PRIMARY: "nobody: learn the target", **primaries_of(self._offer.models)}, value=NO_PRIMARY,
            label="Follows", on_change=self._primary_chosen,
        )  # fmt: skip
        self._primary.props('hint="A version whose side is acted on or skipped: meta-labelling"')
        self._primary.classes("wide-field")
        for each in (self._name, self._type, self._family, self._measure, self._horizon, self._primary):
            each.props("outlined dense")

    def _data(self) -> None:
        labels = {
            index: f"{each.symbol} {each.timeframe} · {words.readable(each.source)} · {words.day(each.first)} to "
            f"{words.day(each.last)}"
            for index, each in enumerate(self._offer.series.series)
        }
        examples = [each.example for each in self._offer.features.features]
        with card("Data"):
            with ui.element("div").classes("field-grid"):
                self._series = ui.select(
                    labels, value=_usual(self._offer.series.series), label="Bars", on_change=self._series_chosen,
                    with_input=True,
                )  # fmt: skip
                self._series.classes("wide-field")
                self._more = ui.input("More symbols").props('hint="Such as GBP/USD, USD/JPY"')
                self._begin = ui.input("From").props('type=date hint="First bar, inclusive"')
                self._end = ui.input("To").props('type=date hint="Bars before this day"')
                sets = [each.name for each in self._offer.features.sets]
                self._features = ui.select(
                    [*examples, *sets], value=_first(examples), multiple=True,
                    label="Features", with_input=True, new_value_mode="add-unique",
                )  # fmt: skip
                self._features.props(f'use-chips hint="{EXPRESSIONS}"')
                self._features.classes("wide-field")
                self._split = ui.number("Share held back", value=DEFAULT_SPLIT, min=0.05, max=0.6, step=0.05)
                self._split.props('hint="The last part by time: validation, calibration and the untouched test part"')
                for each in (self._series, self._more, self._begin, self._end, self._features, self._split):
                    each.props("outlined dense")
            self._functions()
            self._doubts = ui.element("div").classes("part")

    def _functions(self) -> None:
        """What an expression is written with."""
        functions = self._offer.features.functions
        if not functions:
            return
        with ui.expansion("What an expression is written with").classes("part"):
            table(
                {"usage": "Written", "meaning": "Value"},
                [{"usage": each.usage, "meaning": each.description} for each in functions],
                label="Functions of expressions",
            )

    def _further(self) -> None:
        with ui.expansion("More options").classes("card"), ui.element("div").classes("field-grid"):
            self._model_id = ui.input("Model id").props('hint="Default: made of the name; a known one gets a version"')
            self._seeds = ui.input("Seeds", value="0").props('hint="One training each; their mean answers"')
            self._folds = ui.number("Walk-forward folds", value=0, min=0, max=20, precision=0)
            self._folds.props('hint="0: none"')
            self._groups = ui.number("Groups to combine", value=0, min=0, max=16, precision=0)
            self._groups.props('hint="0: none; 6: 15 trainings, each leaves two groups of time out"')
            self._weights = ui.select(
                {"none": "alike", "uniqueness": "by uniqueness"}, value="none", label="Rows count"
            )
            self._weights.props('hint="By uniqueness: less, the more other labels span the same bars"')
            self._spread = ui.number("Spread in pips", min=0).props('hint="Default: the pair\'s own"')
            self._notes = ui.input("Notes")
            for each in (
                self._model_id, self._seeds, self._folds, self._groups, self._weights, self._spread, self._notes,
            ):  # fmt: skip
                each.props("outlined dense")

    # ---- what follows from a choice

    def _type_chosen(self) -> None:
        families = self._families()
        measures = MEASURES.get(self._type.value, ())
        self._measure.set_options(list(measures), value=measures[0] if measures else None)
        self._primary.set_visibility(self._type.value == "classification")
        self._primary_chosen()
        default = next((each.name for each in families if each.is_default), families[0].name)
        self._family.set_options([each.name for each in families], value=default)
        self._family_chosen()

    def _primary_chosen(self) -> None:
        """What a follower learns is its primary's side: it has no target of its own."""
        for each in (self._measure, self._horizon):
            each.set_visibility(bool(MEASURES.get(self._type.value)) and self._follows is None)

    def _family_chosen(self) -> None:
        found = next((each for each in self._families() if each.name == self._family.value), None)
        self._parameters.clear()
        if found is None:
            return
        self._about.text = found.summary
        with self._parameters:
            self._form = SchemaForm(found.hyperparameters)
        self._describe(found)

    def _series_chosen(self) -> None:
        series = self._chosen()
        self._doubts.clear()
        if series is None:
            return
        if series.first is not None and series.last is not None:
            years = 5 if series.timeframe == "1d" else 2
            begin = max(series.first, series.last.replace(year=series.last.year - years, day=1))
            self._begin.value, self._end.value = words.day(begin), words.day(series.last)
        with self._doubts:
            if series.source == "simulated":
                note("These bars are simulated between the daily fixings: no skill can be shown on them.")
            warnings(series.warnings)

    def _families(self) -> tuple[FamilyDescription, ...]:
        return next(each.families for each in self._offer.types.model_types if each.model_type == self._type.value)

    @property
    def _follows(self) -> str | None:
        """The primary, where a classifier is to follow one."""
        return self._primary.value or None if self._type.value == "classification" else None

    def _chosen(self) -> Series | None:
        listed = self._offer.series.series
        return listed[self._series.value] if self._series.value is not None else None

    # ---- what is sent

    @property
    def request(self) -> dict[str, Any]:
        """The body of the training request.

        Raises:
            DataValidationError: a field cannot be read.
        """
        series = self._chosen()
        if series is None:
            raise DataValidationError.at("symbols", "choose the bars to train on")
        found: dict[str, Any] = {
            "name": self._name.value or "",
            "model_type": self._type.value,
            "family": self._family.value,
            "features": list(self._features.value or ()),
            "symbols": [series.symbol, *listed(self._more.value)],
            "timeframe": series.timeframe,
            "start_date": f"{self._begin.value}T00:00:00Z",
            "end_date": f"{self._end.value}T00:00:00Z",
            "validation_split": self._split.value,
            "hyperparameters": self._form.values if self._form else {},
            "seeds": seeds_of(self._seeds.value),
        }
        if self._follows is not None:
            found["meta"] = {"primary": self._follows}
        elif self._measure.value and MEASURES.get(self._type.value):
            found["target"] = target_of(str(self._measure.value), int(self._horizon.value or 1), series.timeframe)
        optional = {"model_id": self._model_id.value, "notes": self._notes.value}
        found.update({name: value for name, value in optional.items() if value})
        if self._folds.value and self._groups.value:
            raise DataValidationError.at("cv", "walk forward or combine groups, one of the two; set the other to 0")
        if self._folds.value:
            found["cv"] = {"scheme": "walk_forward", "folds": int(self._folds.value)}
        if self._groups.value:
            found["cv"] = {"scheme": "combinatorial_purged", "groups": int(self._groups.value)}
        if self._weights.value != "none":
            found["sample_weights"] = self._weights.value
        if self._spread.value is not None:
            found["costs"] = {"spread_pips": self._spread.value}
        return found


def primaries_of(models: Sequence[ModelSummary]) -> dict[str, str]:
    """The versions that a classifier may follow, as the request names them, with what is shown of each."""
    return {
        f"{each.id}@{each.version}": f"{each.id} {each.version} · {each.target} · {', '.join(each.symbols)}"
        for each in models
        if each.target is not None and each.target.rpartition("_")[0] in SIDES_OF and each.status != "archived"
    }


def _usual(listed: tuple[Series, ...]) -> int | None:
    """Hourly bars where there are any, for which the usual targets are made."""
    hourly = [index for index, each in enumerate(listed) if each.timeframe == "1h"]
    return hourly[0] if hourly else (0 if listed else None)


def _first(examples: list[str]) -> list[str]:
    return [each for each in FIRST_FEATURES if each in examples] or examples[:4]


def listed(written: str | None) -> list[str]:
    """What stands between commas."""
    return [each.strip() for each in (written or "").split(",") if each.strip()]


def seeds_of(written: str | None) -> list[int]:
    """Whole numbers between commas; none: the seed 0.

    Raises:
        DataValidationError: something else stands there.
    """
    try:
        return [int(each) for each in listed(written)] or [0]
    except ValueError as error:
        raise DataValidationError.at("seeds", "seeds are whole numbers, such as 0, 1, 2") from error


def target_of(measure: str, horizon: int, timeframe: str) -> str:
    """`price_change_4h` on hourly bars, `log_return_3` on those that have no unit of their own."""
    unit = {"1h": "h", "1d": "d"}.get(timeframe, "")
    return measure if measure.rpartition("_")[2][:1].isdigit() else f"{measure}_{horizon}{unit}"
