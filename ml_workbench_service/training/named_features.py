"""Named features: what the entries of a request's `features` mean: columns, expressions, and sets of them.

    rsi_14                       a column of the store
    zscore(close, 50)            an expression; on the card it is named by its canonical text
    @my_set, @my_set:1.2.0       a set that a feature search made, of the registry
    @alpha158                    a set that ships by name

Everything that can be refused without data is refused here, at the entry that is wrong and the character in it; that
the bars have what is read, by one look at the newest bar of each series.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common_lib.exceptions import DataValidationError, NotFoundError, UpstreamError, UpstreamTimeoutError
from ml_workbench_service.contracts.contract import to_ms
from ml_workbench_service.contracts.feature_names import is_column
from ml_workbench_service.contracts.feature_sets import FeatureSet, is_reference, parse_reference
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.contracts.training import ModelType, TrainRequest
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.market.features.derivation import Derivation
from ml_workbench_service.market.features.expressions.elsewhere import check_source, check_timeframe
from ml_workbench_service.market.features.expressions.named_sets import NAMED_SETS, named_set
from ml_workbench_service.market.features.expressions.nodes import Column, Leaf
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.expressions.units import kind
from ml_workbench_service.market.features.indicators import is_made_of_prices

MOST_WORK = 60_000
"""Operations a bar of all expressions of a request: six times those of `@alpha158`."""
MOST_SERIES = 16
"""Other series that a request's expressions read."""


@dataclass
class _Found:
    """What the entries mean so far: names in order, the text of expressions, and which entry brought each name."""

    features: list[str] = field(default_factory=list)
    expressions: dict[str, str] = field(default_factory=dict)
    brought_by: dict[str, int] = field(default_factory=dict)
    selected_until_ms: int = 0

    def add(self, name: str, text: str | None, number: int) -> None:
        """Another feature; the same one twice counts once.

        Raises:
            DataValidationError: two different ones have the same name.
        """
        if name in self.brought_by and self.expressions.get(name) != text:
            raise DataValidationError.at(
                f"body.features.{number}",
                f"{name} is already the name of another feature (`{self.expressions.get(name, name)}`), which entry "
                f"{self.brought_by[name]} brings; leave one of them out",
                code="same_name",
            )
        if name in self.brought_by:
            return
        self.features.append(name)
        self.brought_by[name] = number
        if text is not None:
            self.expressions[name] = text


def resolve_features(
    request: TrainRequest, store: FeatureStore, registry: FolderModelRegistry, *, timeframe: str
) -> Derivation:
    """The features by name, those that are evaluated with their expressions.

    Raises:
        DataValidationError: an unknown name or function, a unit that does not fit, a set that is none or was selected
            on other bars, or more work than is possible; says at which entry, and at which character of it.
    """
    found = _Found()
    for number, feature in enumerate(request.features):
        path = f"body.features.{number}"
        if is_reference(feature):
            _add_set(found, feature, number, registry, timeframe=timeframe, store=store)
            continue
        expression = None if is_column(feature) else parse(feature, path=path)
        if expression is None or isinstance(expression.root, Column):
            name = feature if expression is None else expression.text
            _check_column(name, store, path)
            found.add(name, None, number)
            continue
        unit = kind(expression, store.kind_of, path=path)
        if unit == "level" and request.model_type is ModelType.FEATURE_ENGINEERING:
            raise DataValidationError.at(
                path, "a search tries what has no unit, since a level drifts; write a ratio, return or z-score of it",
                code="unit_mismatch",
            )  # fmt: skip
        for node in expression.elsewhere.values():
            check_timeframe(node, timeframe, path=path)
        found.add(expression.text, expression.text, number)
    derivation = Derivation(tuple(found.features), found.expressions, found.selected_until_ms)
    _check_bounds(derivation)
    return derivation


def check_set_name(model_id: str) -> None:
    """Refuses a name that a set ships under: `@alpha158` would mean two things.

    Raises:
        DataValidationError: it is one.
    """
    if model_id in NAMED_SETS:
        raise DataValidationError.at(
            "body.model_id", f"@{model_id} is a set that ships with the service; send another `model_id`"
        )


def check_bars(request: TrainRequest, derivation: Derivation, store: FeatureStore, *, timeframe: str) -> None:
    """Looks whether the bars have what the features read beside prices and indicators, of every series.

    A server that fails now is left to the job, which will meet it.

    Raises:
        DataValidationError: a symbol, timeframe or column that is not there, or series of two sources; says of which
            entry.
    """
    wanted: dict[tuple[str, str], dict[str, str]] = {}
    for name in derivation.features:
        expression = derivation.parsed.get(name)
        for leaf in (Leaf(name),) if expression is None else expression.leaves:
            for symbol in [leaf.symbol] if leaf.symbol else request.symbols:
                is_other = bool(leaf.symbol or leaf.timeframe)
                if is_other or not is_made_of_prices(leaf.name):
                    columns = wanted.setdefault((symbol, leaf.timeframe or timeframe), {})
                    columns.setdefault(leaf.name, name)
    try:
        own = {symbol: _newest(store, request, symbol, timeframe, []) for symbol in request.symbols if wanted}
        for (symbol, length), columns in wanted.items():
            other = _looked_at(store, request, symbol, length, columns)
            for table in own.values():
                check_source(table, other)
    except (UpstreamError, UpstreamTimeoutError):
        return
    except DataValidationError as error:
        raise error if error.details["errors"][0]["path"].startswith("body") else error.below("body") from error


def _looked_at(
    store: FeatureStore, request: TrainRequest, symbol: str, timeframe: str, columns: Mapping[str, str]
) -> FeatureTable:
    """The newest bar of a series with these columns; by each alone where the store refuses them together."""
    own = [name for name in columns if not is_made_of_prices(name)]
    try:
        return _newest(store, request, symbol, timeframe, own)
    except DataValidationError:
        for name in own:
            try:
                _newest(store, request, symbol, timeframe, [name])
            except DataValidationError as error:
                raise _lacking(request, columns[name], name, error) from error
        raise


def _lacking(request: TrainRequest, feature: str, column: str, error: DataValidationError) -> DataValidationError:
    """At the entry that brought the feature, where it is written there."""
    numbers = [number for number, each in enumerate(request.features) if _means(each, feature)]
    path = f"body.features.{numbers[0]}" if numbers else "body.features"
    said = error.details["errors"][0]["message"]
    return DataValidationError.at(path, f"{feature} reads `{column}`: {said}", code="unknown_feature")


def _means(entry: str, feature: str) -> bool:
    found = named_set(entry)
    if found is not None:
        return feature in found.expressions()
    return not is_reference(entry) and (entry == feature or parse(entry).text == feature)


def _newest(
    store: FeatureStore, request: TrainRequest, symbol: str, timeframe: str, columns: Sequence[str]
) -> FeatureTable:
    return store.fetch(
        [symbol], timeframe, start_ms=None, end_ms=to_ms(request.end_date), features=["close", *columns], last=1,
        as_of_ms=None if request.as_of is None else to_ms(request.as_of),
    )[0]  # fmt: skip


def _add_set(
    found: _Found, feature: str, number: int, registry: FolderModelRegistry, *, timeframe: str, store: FeatureStore
) -> None:
    """The columns of a set that ships by name, or of one that a search made."""
    path = f"body.features.{number}"
    ships = named_set(feature)
    if ships is not None:
        for name, text in ships.expressions().items():
            kind(parse(text), store.kind_of, path=path)
            found.add(name, text, number)
        return
    made = selected_set(feature, registry, path=path)
    if made.timeframe != timeframe:
        raise DataValidationError.at(
            path,
            f"{feature} was selected on {made.timeframe} bars and this training reads {timeframe}; "
            "search features on those, or change the target's unit",
        )
    for each in made.expressions:
        found.add(each.name, each.expression, number)
    found.selected_until_ms = max(found.selected_until_ms, to_ms(made.selection.end))


def selected_set(feature: str, registry: FolderModelRegistry, *, path: str) -> FeatureSet:
    """The set of a search that is named, its newest or live version unless it names one.

    Raises:
        DataValidationError: there is none, or it is another model; at this path.
    """
    try:
        model_id, version = parse_reference(feature)
        card = registry.served_card(model_id) if version is None else registry.card(model_id, version)
    except (ValueError, NotFoundError) as error:
        raise DataValidationError.at(
            path,
            f"there is no feature set {feature}; GET /api/v1/models?model_type=feature_engineering lists them, and "
            f"{', '.join(f'@{name}' for name in NAMED_SETS)} ship with the service",
            code="unknown_feature",
        ) from error
    if "feature_set" not in card.findings:
        raise DataValidationError.at(
            path, f"{feature} is a model of type {card.type}, not a feature set; train one with feature_engineering",
            code="unknown_feature",
        )  # fmt: skip
    return FeatureSet.model_validate(card.findings["feature_set"])


def _check_column(name: str, store: FeatureStore, path: str) -> None:
    try:
        store.kind_of(name)
    except DataValidationError as error:
        raise DataValidationError.at(path, error.message, code="unknown_feature") from error


def _check_bounds(derivation: Derivation) -> None:
    if derivation.work > MOST_WORK:
        raise DataValidationError.at(
            "body.features",
            f"these expressions cost {derivation.work} operations a bar, and {MOST_WORK} are possible; name fewer, or "
            "shorten the windows of rank, quantile, idxmax and idxmin",
            code="too_much_work",
        )
    series = {(leaf.symbol, leaf.timeframe) for each in derivation.parsed.values() for leaf in each.leaves}
    if len(series - {("", "")}) > MOST_SERIES:
        raise DataValidationError.at(
            "body.features", f"these expressions read {len(series)} series, and {MOST_SERIES} are possible; name fewer",
            code="too_many_series",
        )  # fmt: skip
