"""Train: a form out of what the service can do: families with their hyper-parameters, bars, features, targets."""

import asyncio
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from common_lib.exceptions import DataValidationError
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import button, card, facts, heading, link, note, warnings
from ml_workbench_client.page.components.dialogs import attempted
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.proof import reading
from ml_workbench_client.page.components.schema_form import SchemaForm
from ml_workbench_client.page.components.table import Cell, table
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.market import FeatureDescription
from ml_workbench_service.contracts.models import FamilyDescription, ModelTypeList
from ml_workbench_service.contracts.reading_reports import Series, SeriesList

MEASURES = {
    "time_series": ("price_change", "log_return", "volatility"),
    "classification": ("direction", "triple_barrier", "market_regime"),
    "feature_engineering": ("price_change", "log_return", "direction", "volatility"),
}
"""Of each type that has a target, those that it is used with, the usual one first; others can be written."""
FIRST_FEATURES = ("sma_20", "rsi_14", "macd", "bb_width_20")
DEFAULT_SPLIT = 0.2


@dataclass(frozen=True)
class Offer:
    """What there is to train with."""

    types: ModelTypeList
    series: SeriesList
    features: list[FeatureDescription]


@view("/train", "Train")
def train(visit: Visit) -> None:
    """The form, and below it the bars with their reading reports."""

    async def fetch() -> Offer:
        types, series, features = await asyncio.gather(
            visit.bench.model_types, visit.bench.data, visit.bench.feature_names
        )
        return Offer(types, series, features)

    Part(fetch, lambda found: TrainingForm(visit, found))


class TrainingForm:
    """The form and what it sends."""

    def __init__(self, visit: Visit, offer: Offer) -> None:
        self._visit, self._offer = visit, offer
        self._form: SchemaForm | None = None
        self._what()
        self._data()
        with card("Hyper-parameters", aside="what is left as it is keeps the service's default"):
            self._parameters = ui.element("div").classes("part")
        self._further()
        with card():
            button("Start the training", on_click=self._start, kind="main")
            self._outcome = ui.element("div").classes("part").props("aria-live=polite")
        _catalogue(offer.series)
        self._type_chosen()
        self._series_chosen()

    # ---- the fields

    def _what(self) -> None:
        types = {each.model_type: words.readable(each.model_type) for each in self._offer.types.model_types}
        with card("What"):
            with ui.element("div").classes("field-grid"):
                self._what_fields(types)
            self._about = note("")

    def _what_fields(self, types: dict[str, str]) -> None:
        self._name = ui.input("Name", value="My first model")
        self._type = ui.select(types, value=next(iter(types)), label="Type", on_change=self._type_chosen)
        self._family = ui.select([], label="Family", on_change=self._family_chosen)
        self._measure = ui.select([], label="Target", new_value_mode="add-unique")
        self._horizon = ui.number("Bars ahead", value=1, min=1, max=9999, precision=0)
        for each in (self._name, self._type, self._family, self._measure, self._horizon):
            each.props("outlined dense")

    def _data(self) -> None:
        labels = {
            index: f"{each.symbol} {each.timeframe} · {words.readable(each.source)} · {words.day(each.first)} to "
            f"{words.day(each.last)}"
            for index, each in enumerate(self._offer.series.series)
        }
        examples = [each.example for each in self._offer.features]
        with card("Data"):
            with ui.element("div").classes("field-grid"):
                self._series = ui.select(
                    labels, value=_usual(self._offer.series.series), label="Bars", on_change=self._series_chosen,
                    with_input=True,
                )  # fmt: skip
                self._more = ui.input("More symbols").props('hint="Such as GBP/USD, USD/JPY"')
                self._begin = ui.input("From").props('type=date hint="First bar, inclusive"')
                self._end = ui.input("To").props('type=date hint="Bars before this day"')
                self._features = ui.select(
                    examples, value=_first(examples), multiple=True,
                    label="Features", with_input=True, new_value_mode="add-unique",
                )  # fmt: skip
                self._features.props("use-chips")
                self._split = ui.number("Share held back", value=DEFAULT_SPLIT, min=0.05, max=0.6, step=0.05)
                self._split.props('hint="The last part by time: validation, calibration and the untouched test part"')
                for each in (self._series, self._more, self._begin, self._end, self._features, self._split):
                    each.props("outlined dense")
            self._doubts = ui.element("div").classes("part")

    def _further(self) -> None:
        with ui.expansion("More options").classes("card"), ui.element("div").classes("field-grid"):
            self._model_id = ui.input("Model id").props('hint="Default: made of the name; a known one gets a version"')
            self._seeds = ui.input("Seeds", value="0").props('hint="One training each; their mean answers"')
            self._folds = ui.number("Walk-forward folds", value=0, min=0, max=20, precision=0)
            self._folds.props('hint="0: none"')
            self._spread = ui.number("Spread in pips", min=0).props('hint="Default: the pair\'s own"')
            self._notes = ui.input("Notes")
            for each in (self._model_id, self._seeds, self._folds, self._spread, self._notes):
                each.props("outlined dense")

    # ---- what follows from a choice

    def _type_chosen(self) -> None:
        families = self._families()
        measures = MEASURES.get(self._type.value, ())
        self._measure.set_options(list(measures), value=measures[0] if measures else None)
        for each in (self._measure, self._horizon):
            each.set_visibility(bool(measures))
        default = next((each.name for each in families if each.is_default), families[0].name)
        self._family.set_options([each.name for each in families], value=default)
        self._family_chosen()

    def _family_chosen(self) -> None:
        found = next((each for each in self._families() if each.name == self._family.value), None)
        self._parameters.clear()
        if found is None:
            return
        self._about.text = found.summary
        with self._parameters:
            self._form = SchemaForm(found.hyperparameters)

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
            "symbols": [series.symbol, *_listed(self._more.value)],
            "timeframe": series.timeframe,
            "start_date": f"{self._begin.value}T00:00:00Z",
            "end_date": f"{self._end.value}T00:00:00Z",
            "validation_split": self._split.value,
            "hyperparameters": self._form.values if self._form else {},
            "seeds": _seeds(self._seeds.value),
        }
        if self._measure.value and MEASURES.get(self._type.value):
            found["target"] = _target(str(self._measure.value), int(self._horizon.value or 1), series.timeframe)
        optional = {"model_id": self._model_id.value, "notes": self._notes.value}
        found.update({name: value for name, value in optional.items() if value})
        if self._folds.value:
            found["cv"] = {"scheme": "walk_forward", "folds": int(self._folds.value)}
        if self._spread.value is not None:
            found["costs"] = {"spread_pips": self._spread.value}
        return found

    async def _start(self) -> None:
        async def send() -> Any:
            return await self._visit.bench.train(**self.request)

        job = await attempted(send)
        if job is None:
            return
        self._outcome.clear()
        with self._outcome:
            heading(f"{job.accepted.get('model_id')} {job.accepted.get('version')} is on its way", 3)
            estimate = job.accepted.get("estimate") or {}
            facts(
                {
                    "about": words.duration(estimate.get("duration_s")),
                    "memory": f"{words.number(estimate.get('memory_gb'))} GB",
                    "windows": estimate.get("num_windows"),
                    "power": words.percent(estimate.get("power"), 0),
                }
            )
            power = estimate.get("power")
            if power is not None and power < 0.8:
                note(
                    "Under a power of 80 % the verdict may be that there are too few data; a longer range or shorter "
                    "horizons raise it."
                )
            link("Watch it, or cancel it", words.path("jobs", job.id))


def _usual(listed: tuple[Series, ...]) -> int | None:
    """Hourly bars where there are any, for which the usual targets are made."""
    hourly = [index for index, each in enumerate(listed) if each.timeframe == "1h"]
    return hourly[0] if hourly else (0 if listed else None)


def _first(examples: list[str]) -> list[str]:
    return [each for each in FIRST_FEATURES if each in examples] or examples[:4]


def _listed(written: str | None) -> list[str]:
    return [each.strip() for each in (written or "").split(",") if each.strip()]


def _seeds(written: str | None) -> list[int]:
    try:
        return [int(each) for each in _listed(written)] or [0]
    except ValueError as error:
        raise DataValidationError.at("seeds", "seeds are whole numbers, such as 0, 1, 2") from error


def _target(measure: str, horizon: int, timeframe: str) -> str:
    """`price_change_4h` on hourly bars, `log_return_3` on those that have no unit of their own."""
    unit = {"1h": "h", "1d": "d"}.get(timeframe, "")
    return measure if measure.rpartition("_")[2][:1].isdigit() else f"{measure}_{horizon}{unit}"


def _catalogue(found: SeriesList) -> None:
    with card("Bars that there are", aside="how each was read", anchor="catalogue"):
        if not found.series:
            note("There are no bars. Put files into the folder that FEATURE_STORE_URL names.")
            return
        table(
            {
                "symbol": "Symbol", "timeframe": "Bars", "source": "Source", "origin": "File", "rows": "Rows",
                "first": "From", "last": "To", "clock": "Clock", "doubts": "Doubts",
            },
            [
                {
                    "symbol": each.symbol, "timeframe": each.timeframe, "source": words.readable(each.source),
                    "origin": each.origin, "rows": Cell(each.num_rows, f"{each.num_rows:,}"),
                    "first": words.day(each.first), "last": words.day(each.last), "clock": each.time_zone,
                    "doubts": Cell(len(each.warnings), str(len(each.warnings)), tone="warn" if each.warnings else None),
                }
                for each in found.series
            ],
            label="Series of bars",
            numeric=("rows",),
            page_rows=10,
        )  # fmt: skip
        with ui.expansion("Reading reports").classes("full"):
            for each in found.series[:50]:
                reading(each)
        if found.ignored:
            heading("Files that give no bars", 3)
            for ignored in found.ignored:
                note(f"{ignored.origin}: {ignored.reason}")
