"""A model's features: some as they were fetched, some evaluated, alike in training and in serving."""

import numpy as np
import pytest

from common_lib.exceptions import DataValidationError
from ml_workbench_service.contracts.market import FeatureTable, Floats
from ml_workbench_service.market.features import indicators
from ml_workbench_service.market.features.derivation import Derivation, columns_of
from ml_workbench_service.market.features.expressions.parser import parse

HOUR_MS = 3_600_000
MONDAY_MS = 1_704_067_200_000  # 2024-01-01T00:00Z


def derivation() -> Derivation:
    names = {"close.over.sma_5": "close / sma_5", "lag.rsi_14.2": "lag(rsi_14, 2)"}
    return Derivation(("rsi_14", *names), names)


def columns(num: int = 30, seed: int = 0) -> dict[str, Floats]:
    chance = np.random.default_rng(seed)
    return {
        "rsi_14": chance.uniform(20, 80, num),
        "close": chance.uniform(1, 2, num),
        "sma_5": chance.uniform(1, 2, num),
    }


def table(num: int = 30) -> FeatureTable:
    opened = MONDAY_MS + HOUR_MS * np.arange(num)
    return FeatureTable("EUR/USD", "1h", opened, opened + HOUR_MS, columns(num), "file")


def test_what_must_be_fetched_is_named_once_and_in_order() -> None:
    assert derivation().base_columns == ("rsi_14", "close", "sma_5")
    assert derivation().history == 2
    assert columns_of([parse("close / sma_5"), parse("lag(close, 3)")]) == ["close", "sma_5"]


def test_plain_features_pass_and_expressions_are_evaluated() -> None:
    found, sent = derivation().read_table(table()), columns()
    assert found["rsi_14"].tobytes() == sent["rsi_14"].tobytes()
    assert found["close.over.sma_5"] == pytest.approx(sent["close"] / sent["sma_5"])
    assert found["lag.rsi_14.2"][2:].tolist() == sent["rsi_14"][:-2].tolist()
    assert np.isnan(found["lag.rsi_14.2"][:2]).all()


def test_a_short_tail_gives_the_same_bits_as_the_whole_history() -> None:
    whole = derivation().read_table(table())
    tail = {name: column[-6:] for name, column in columns().items()}
    found = derivation().read(tail, opened_ms=table().opened_ms[-6:], runs=np.zeros(6, dtype=np.int64))
    for name in derivation().features:
        assert found[name][2:].tobytes() == whole[name][-4:].tobytes()


def test_without_expressions_nothing_is_computed() -> None:
    plain = Derivation(("close", "rsi_14"))
    assert plain.base_columns == ("close", "rsi_14")
    assert plain.history == 0
    assert list(plain.read_table(table())) == ["close", "rsi_14"]


def test_kinds_follow_from_the_expression() -> None:
    assert derivation().kinds(indicators.kind_of) == ["stationary", "stationary", "stationary"]
    assert Derivation(("close", "x"), {"x": "lag(close, 1)"}).kinds(indicators.kind_of) == ["level", "level"]


def test_a_missing_column_is_an_error() -> None:
    sent = columns()
    del sent["sma_5"]
    with pytest.raises(DataValidationError, match="sma_5"):
        derivation().read(sent, opened_ms=table().opened_ms, runs=np.zeros(30, dtype=np.int64))
