"""`Derivation`: a model's features, some fetched as they are, some evaluated from what was fetched by expressions.

Training and serving read a table through the same derivation, so a feature means the same in both, bit-equal on a
short tail. Its expressions are
kept in the bundle: a model does not change when the feature set that it was trained with is archived.

Legend: N bars.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ml_workbench_service.contracts.contract import TIMEFRAMES_MS
from ml_workbench_service.contracts.market import FeatureKind, FeatureTable, Floats, Ints
from ml_workbench_service.market import calendar
from ml_workbench_service.market.features.expression_grammar import Expression, parse
from ml_workbench_service.market.features.expressions import KindOf, evaluate, kind


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
