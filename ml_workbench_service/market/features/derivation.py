"""`Derivation`: a model's features, some fetched as they are, some evaluated from what was fetched by expressions.

Training and serving read a table through the same derivation, so a feature means the same in both, bit-equal on a
short tail. Its expressions are
kept in the bundle: a model does not change when the feature set that it was trained with is archived.

What an expression reads of another series (`at("1d", rsi_14)`) is a column that the feature store delivers under that
text (`market.features.expression_store`).

Legend: N bars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.feature_names import may_be_column
from ml_workbench_service.contracts.market import FeatureKind, FeatureTable, Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.features.expressions.evaluation import evaluate
from ml_workbench_service.market.features.expressions.nodes import (
    Call,
    Column,
    Elsewhere,
    Expression,
    Leaf,
    Node,
    own_reach,
)
from ml_workbench_service.market.features.expressions.parser import parse
from ml_workbench_service.market.features.expressions.units import KindOf, kind
from ml_workbench_service.market.features.indicators import warm_up


@dataclass(frozen=True)
class Derivation:
    """Features in order; `expressions` has the text of those that are evaluated, by name.

    Attributes:
        selected_until_ms: when the newest label was known that chose an expression; 0 where none was chosen by data.
    """

    features: tuple[str, ...]
    expressions: Mapping[str, str] = field(default_factory=dict)
    selected_until_ms: int = 0

    @cached_property
    def parsed(self) -> dict[str, Expression]:
        """The expressions, by feature name."""
        return {name: parse(text) for name, text in self.expressions.items()}

    @cached_property
    def base_columns(self) -> tuple[str, ...]:
        """What has to be fetched, or sent, for all features, each once."""
        named = (self.parsed[name].base_columns if name in self.parsed else (name,) for name in self.features)
        return tuple(dict.fromkeys(column for columns in named for column in columns))

    @cached_property
    def history(self) -> int:
        """Bars before a row that its features depend on, besides those that the columns themselves need."""
        return max((each.history for each in self.parsed.values()), default=0)

    @property
    def elsewhere(self) -> dict[str, Elsewhere]:
        """What the expressions read of other series, by the name of the column that it is here."""
        return {text: node for each in self.parsed.values() for text, node in each.elsewhere.items()}

    @property
    def work(self) -> int:
        """Operations a bar of all expressions, what they share counted as often as it is written."""
        return sum(each.work for each in self.parsed.values())

    def needs(self, feature: str) -> str:
        """In words, how many bars in a row a feature needs, its own and what is inside it, of each series."""
        expression = self.parsed.get(feature) or Expression(Column(feature))
        bars = [f"{own + 1} bars{where}" for where, own in _bars_back(expression.root, "").items()]
        return f"{feature} needs {' and '.join(bars)} in a row" if bars else f"{feature} reads its own bar"

    def kinds(self, kind_of: KindOf) -> list[FeatureKind]:
        """`level` or `stationary` for each feature; `kind_of` answers for columns."""
        return [kind(self.parsed[name], kind_of) if name in self.parsed else kind_of(name) for name in self.features]

    def read(self, columns: Mapping[str, Floats], *, opened_ms: Ints, runs: Ints) -> dict[str, Floats]:
        """Every feature's column (N,) of one symbol.

        Raises:
            DataValidationError: a base column is missing.
        """
        found = evaluate(list(self.parsed.values()), columns, opened_ms=opened_ms, runs=runs) if self.parsed else {}
        return {
            name: found[self.parsed[name].text] if name in self.parsed else np.asarray(columns[name])
            for name in self.features
        }

    def read_table(self, table: FeatureTable) -> dict[str, Floats]:
        """Every feature's column of a fetched table."""
        runs = np.zeros(len(table), dtype=np.int64)  # only expressions ask for them
        if self.parsed:
            runs = calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar)
        return self.read(table.columns, opened_ms=table.opened_ms, runs=runs)


def columns_of(expressions: Sequence[Expression]) -> list[str]:
    """The base columns of several expressions, each once, in their order."""
    return list(dict.fromkeys(column for each in expressions for column in each.base_columns))


@lru_cache(maxsize=4096)
def leaves_of(column: str) -> tuple[Leaf, ...]:
    """What a base column is made of: itself, or what it reads of other series."""
    return (Leaf(column),) if may_be_column(column) else parse(column).leaves


def _bars_back(node: Node, where: str) -> dict[str, int]:
    """Bars before a row that a value needs, its columns' own warm-up included, by series (" of 1d", "": its own)."""
    if isinstance(node, Elsewhere):
        name = f"{where} of {node.symbol or node.timeframe}"
        return {name: 0} | _bars_back(node.inner, name)
    if isinstance(node, Column):
        return {where: warm_up(node.name)}
    found: dict[str, int] = {}
    for operand in node.operands if isinstance(node, Call) else ():
        for series, bars in _bars_back(operand, where).items():
            found[series] = max(found.get(series, 0), bars)
    if isinstance(node, Call):
        found[where] = found.get(where, 0) + own_reach(node)
    return found
