"""Expression catalogue: the grammar's functions and the sets that ship by name, as `GET /features` lists them."""

from functools import lru_cache

from ml_workbench_service.contracts.market_data import FunctionDescription, NamedSetDescription
from ml_workbench_service.market.features.expressions.functions import ELSEWHERE, FUNCTIONS
from ml_workbench_service.market.features.expressions.named_sets import NAMED_SETS
from ml_workbench_service.market.features.expressions.parser import parse


@lru_cache(maxsize=1)
def described_functions() -> tuple[FunctionDescription, ...]:
    """The two words that read another series, and every function, in the order in which they are explained."""
    functions = [
        FunctionDescription(
            name=each.name, usage=each.usage, fewest_bars=each.fewest_bars, description=each.description
        )
        for each in FUNCTIONS.values()
    ]
    others = [
        FunctionDescription(name=name, usage=usage, fewest_bars=0, description=meaning)
        for name, (usage, meaning) in ELSEWHERE.items()
    ]
    return (*others, *functions)


@lru_cache(maxsize=1)
def described_sets() -> tuple[NamedSetDescription, ...]:
    """Every set, with the columns of the bars that it reads."""
    found = []
    for each in NAMED_SETS.values():
        parsed = [parse(text) for text in each.expressions().values()]
        columns = dict.fromkeys(column for one in parsed for column in one.base_columns)
        found.append(
            NamedSetDescription(
                name=f"@{each.name}", description=each.description, num_features=len(parsed), columns=tuple(columns)
            )
        )
    return tuple(found)
