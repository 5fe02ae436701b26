"""What proves a ready-made column: values seen in time and unchanged, or their owner's word; else nothing does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ml_workbench_service.contracts.evaluation import Certificate, CertificateCheck, CheckStatus
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable, Ints
from ml_workbench_service.evaluation.leakage.certificate import certify
from ml_workbench_service.evaluation.leakage.proof import ColumnProof, prove
from ml_workbench_service.integrations.column_witness import SqliteColumnWitness
from ml_workbench_service.integrations.feature_store.bar_fixings import no_fixings
from ml_workbench_service.integrations.feature_store.bar_folder import FolderBars
from ml_workbench_service.integrations.feature_store.local import LocalFeatureStore
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.features import expression_store
from ml_workbench_service.market.features.expression_store import ExpressionStore
from ml_workbench_service.testing.clocks import FixedClock
from ml_workbench_service.testing.synthetic import Recorder
from tests.evaluation.leakage.test_certificate import RemoteStore, ordered
from tests.trained_models import injected_bars

NUM_BARS = 700
FEATURES = {"features": ["signal", "rsi_14"], "validation_split": 0.25}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hourly bars with a column of the user's own."""
    injected_bars(NUM_BARS, seed=2).write(tmp_path, "EUR/USD")
    return tmp_path


@pytest.fixture
def witness(tmp_path: Path) -> SqliteColumnWitness:
    """One that has seen nothing."""
    return SqliteColumnWitness(tmp_path / "state" / "witnesses.db")


def grown(
    folder: Path, witness: SqliteColumnWitness, *, after_ms: int, looks: int = NUM_BARS, symbol: str = "EUR/USD"
) -> LocalFeatureStore:
    """The store after the newest bars were seen one by one, each so long after its end."""
    clock = FixedClock.at_ms(0)
    store = LocalFeatureStore(FolderBars(folder, fixings=no_fixings), witness=witness, clock=clock)
    known_ms = FolderBars(folder, fixings=no_fixings).bars(symbol, "1h").available_at_ms
    for known in known_ms[-looks:].tolist():
        clock.moment = FixedClock.at_ms(known + after_ms).moment
        store.fetch([symbol], "1h", start_ms=None, end_ms=None, features=["close"], last=1)
    return store


def proof_of(store: FeatureStore, **request: Any) -> ColumnProof:
    """Of a training on the user's column."""
    order, data = ordered(store, **FEATURES, **request)
    return prove({"signal"}, order, data, store)


def num_test(folder: Path) -> int:
    """Bars from the first test window's last one on: a look at that one sees the window's other bars in time."""
    _, data = ordered(LocalFeatureStore(FolderBars(folder, fixings=no_fixings)), **FEATURES)
    return NUM_BARS - int(data.windows.parts["test"].min())


def test_values_seen_as_the_file_grew_are_witnessed(folder: Path, witness: SqliteColumnWitness) -> None:
    store = grown(folder, witness, after_ms=HOUR_MS // 10, looks=num_test(folder))
    assert proof_of(store).proof == "witnessed"
    order, data = ordered(store, **FEATURES)
    found = certify(order, data, store, report=Recorder())
    assert (found.status, found.proof) == ("passed", "witnessed")


def test_a_first_bulk_read_witnesses_nothing(folder: Path, witness: SqliteColumnWitness) -> None:
    store = LocalFeatureStore(FolderBars(folder, fixings=no_fixings), witness=witness)
    assert proof_of(store).proof is None
    assert proof_of(store).proof is None  # and no more when it is read again
    assert "signal" in proof_of(store).reason


@pytest.mark.parametrize(("too_late_ms", "too_few"), [(1, 0), (0, 1)])
def test_a_value_seen_later_than_a_tenth_of_a_bar_after_its_own_is_missed(
    folder: Path, witness: SqliteColumnWitness, too_late_ms: int, too_few: int
) -> None:
    """Where the first look comes a bar too late, it sees all bars before it late."""
    looks = num_test(folder) - too_few
    assert proof_of(grown(folder, witness, after_ms=HOUR_MS // 10 + too_late_ms, looks=looks)).proof is None


def test_a_value_that_was_revised_after_it_was_seen_proves_nothing(folder: Path, witness: SqliteColumnWitness) -> None:
    store = grown(folder, witness, after_ms=0, looks=num_test(folder))
    order, data = ordered(store, **FEATURES)
    (table,) = data.tables
    revised = np.array(table.columns["signal"])
    revised[-20] += 1e-9
    other = replace(data, tables=(replace(table, columns={**table.columns, "signal": revised}),))
    assert prove({"signal"}, order, data, store).proof == "witnessed"
    assert prove({"signal"}, order, other, store).proof is None


OF_POUND = 'mean(of("GBP/USD", signal), 3)'


def asked_of_pound(store: FeatureStore) -> tuple[ColumnProof, Certificate]:
    """Of a training of one symbol whose expression reads a column of another one's files."""
    order, data = ordered(
        store, plan={"expressions": {OF_POUND: OF_POUND}}, **{**FEATURES, "features": [OF_POUND, "rsi_14"]}
    )
    return prove({'of("GBP/USD", signal)'}, order, data, store), certify(order, data, store, report=Recorder())


def test_a_column_of_another_symbol_is_asked_of_its_own_bars(folder: Path, witness: SqliteColumnWitness) -> None:
    """Seen there in time it is witnessed here; once a value is changed it is not."""
    pound = injected_bars(NUM_BARS, seed=9, level=1.3)
    pound.write(folder, "GBP/USD")
    store = ExpressionStore(grown(folder, witness, after_ms=0, looks=num_test(folder) + 2, symbol="GBP/USD"))
    found, certificate = asked_of_pound(store)
    assert found.proof == certificate.proof == "witnessed"
    assert certificate.status == "passed"
    assert 'of("GBP/USD", signal)' in found.reason
    revised = pound.signal.copy()
    revised[-30] += 1e-3
    pound.write(folder, "GBP/USD", signal=revised)
    found, certificate = asked_of_pound(store)
    assert (found.proof, certificate.proof, certificate.status) == (None, None, "unprovable")


def test_a_column_of_another_symbol_that_was_read_in_bulk_proves_nothing(folder: Path) -> None:
    injected_bars(NUM_BARS, seed=9, level=1.3).write(folder, "GBP/USD")
    store = ExpressionStore(LocalFeatureStore(FolderBars(folder, fixings=no_fixings)))
    found, certificate = asked_of_pound(store)
    assert (found.proof, certificate.proof) == (None, None)


def test_another_symbols_prices_are_made_again(folder: Path) -> None:
    injected_bars(NUM_BARS, seed=9, level=1.3).write(folder, "GBP/USD")
    store = ExpressionStore(LocalFeatureStore(FolderBars(folder, fixings=no_fixings)))
    text = 'ret(of("GBP/USD", close), 1)'
    order, data = ordered(store, plan={"expressions": {text: text}}, features=[text])
    assert certify(order, data, store, report=Recorder()).proof == "recomputed"


def with_claims(folder: Path, claimed: np.ndarray) -> LocalFeatureStore:
    """The same bars with an `available_at` where it is claimed."""
    (file,) = folder.glob("EURUSD*")
    frame = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file)
    known = [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in _moments(folder)]
    file.unlink()
    claims = [text if is_claimed else None for text, is_claimed in zip(known, claimed, strict=True)]
    frame.with_columns(pl.Series("available_at", claims)).write_csv(folder / "EURUSD_1h.csv")
    return LocalFeatureStore(FolderBars(folder, fixings=no_fixings))


def _moments(folder: Path) -> list[Any]:
    known_ms = FolderBars(folder, fixings=no_fixings).bars("EUR/USD", "1h").available_at_ms
    return pl.Series(known_ms).cast(pl.Datetime("ms")).to_list()


def test_a_claim_for_every_bar_declares_the_column_and_no_more(folder: Path) -> None:
    store = with_claims(folder, np.ones(NUM_BARS, dtype=bool))
    assert proof_of(store).proof == "declared"
    order, data = ordered(store, **FEATURES)
    assert certify(order, data, store, report=Recorder()).proof == "declared"


def test_a_claim_with_holes_declares_nothing(folder: Path) -> None:
    assert proof_of(with_claims(folder, np.arange(NUM_BARS) != 300)).proof is None


def test_what_is_made_of_prices_alone_is_recomputed(folder: Path) -> None:
    store = LocalFeatureStore(FolderBars(folder, fixings=no_fixings))
    order, data = ordered(store)
    assert certify(order, data, store, report=Recorder()).proof == "recomputed"


def test_a_servers_columns_are_the_users_own_unless_they_are_prices(folder: Path) -> None:
    def certified(order: TrainingOrder, data: TrainingData) -> Certificate:
        return certify(order, data, store, report=Recorder())

    store = RemoteStore(LocalFeatureStore(FolderBars(folder, fixings=no_fixings)))
    assert certified(*ordered(store)).proof is None
    assert certified(*ordered(store, features=["close"])).proof == "recomputed"


@pytest.mark.parametrize("status", ["failed", "unprovable"])
def test_no_proof_stands_beside_a_check_that_did_not_pass(status: CheckStatus) -> None:
    checks = tuple(CertificateCheck(name=each, status=each, detail="") for each in ("passed", status))
    assert Certificate.of(checks, proof="recomputed").proof is None


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_join_that_looked_ahead_would_move(folder: Path, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """What `at` and `of` read is made again too: were they to read the next bar, the certificate would say so."""
    injected_bars(NUM_BARS, seed=9, level=1.3).write(folder, "GBP/USD")
    true = expression_store.rows_read

    def rows(table: FeatureTable, other: FeatureTable) -> Ints:
        return np.minimum(true(table, other) + ahead, len(other) - 1)

    monkeypatch.setattr(expression_store, "rows_read", rows)
    store = ExpressionStore(LocalFeatureStore(FolderBars(folder, fixings=no_fixings)))
    for text in ('ret(of("GBP/USD", close), 1)', 'at("4h", ret(close, 1))'):
        order, data = ordered(store, plan={"expressions": {text: text}}, features=[text])
        found = certify(order, data, store, report=Recorder())
        assert found.status == ("failed" if ahead else "passed"), text
