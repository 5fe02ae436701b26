"""Leakage certificate: whether anything that a training learns or is measured on knew the future.

It starts at the delivered bars and calls the very objects that made the training's matrix, so it knows no list of
leaks: an indicator, a scaler, a label or a splitter that reads ahead moves when what it reads is replaced.

    reading                     nothing is doubtful about how files were read        (`leakage.reading_check`)
    bar_times                   no bar counts as known before it ended
    features_future_replaced    columns and features, with every later bar replaced  (`leakage.recomputation`)
    features_future_cut         the same, with the later bars cut off
    labels_known                labels that are known by then
    scaling                     scaler, fitted rules, parts, and the rows as a network reads them
    labels_own_bars             a label moves with its own bars and no others        (`leakage.label_checks`)
    purged_borders              no label of a part reaches over its border
    selection                   a feature search made again: the same choice
    selected_before_test        no feature set was chosen on labels of this test part
    ready_made_columns          what nobody can make again: `unprovable`, unless proven  (`leakage.proof`)
    near_copies                 what such columns tell of the target                 (`leakage.column_checks`)
    look_ahead_joins            and, where they move in steps, of the time until their next one

A parent model would carry what it was selected on into its child. None does: every training begins from its request,
its seed and its bars alone, and `lineage.parent_version` names the version before, from which nothing is taken. Whoever
lets a training begin from another version's weights adds that version's selection data to `selected_before_test`.

When it fails: a leak may be idle at every sampled moment, and a ready-made column may know the future and tell little.
So silence about such a column proves nothing: `Certificate.proof` says what does.
"""

from collections.abc import Sequence

import numpy as np

from ml_workbench_service.accelerators.cpu import Cpu
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, iso_of_ms
from ml_workbench_service.contracts.evaluation import Certificate, CertificateCheck, CheckStatus
from ml_workbench_service.contracts.jobs import Report, SilentReport
from ml_workbench_service.contracts.market import FeatureStore, FeatureTable
from ml_workbench_service.evaluation.leakage import label_checks as label_support
from ml_workbench_service.evaluation.leakage.column_checks import Outcome, Past, Telling, joined_ahead, near_copy
from ml_workbench_service.evaluation.leakage.proof import ColumnProof, prove
from ml_workbench_service.evaluation.leakage.reading_check import reading
from ml_workbench_service.evaluation.leakage.recomputation import Recomputation
from ml_workbench_service.learning.interfaces.dataset import TrainingData, TrainingOrder
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.market.calendar import HOUR_MS
from ml_workbench_service.market.features.derivation import columns_of, leaves_of
from ml_workbench_service.market.features.expressions.nodes import Expression

SELECTION_CANDIDATES = 16
"""Of a search, evenly from its list, when it is made twice: each is scored by itself."""
EARLIEST_FIXING_MS = 12 * HOUR_MS + HOUR_MS // 4
"""A fixing's bar is stamped 00:00Z and fixed at 14:15 in Frankfurt, in summer."""
PRICES = frozenset({"open", "high", "low", "close"})
"""Where the certificate starts; every other delivered column was made, by the store or by the user: of a file's volume
and spread nobody knows when they were written either."""


def certify(
    order: TrainingOrder, data: TrainingData, store: FeatureStore, *, report: Report, seed: int | None = None
) -> Certificate:
    """Every check, on the data that the training reads.

    Args:
        order: what is trained.
        data: its matrix, as `training_data.prepare` made it from `store`.
        store: where the bars come from; one that cannot make its columns again leaves them `unprovable`.
        report: cancels between recomputations.
        seed: of the moments and replacements; the request's first seed unless given.

    Raises:
        JobCancelled: somebody asked for it.
        DataValidationError: the data are too few for a feature search, which the training itself would say next.
    """
    seed, order = order.request.seeds[0] if seed is None else seed, order.filled(data.tables[0].fill)
    again = Recomputation(order, data, store, report, seed)
    again.run()
    made = _ready_made(again)
    proven = prove(made, order, data, store)
    return Certificate.of(
        (
            reading(data.tables),
            _bar_times(data.tables),
            *_recomputed(again, proven),
            *label_support.checks(order, data, store.kind_of, seed=seed),
            label_support.purged_borders(order, data),
            *_selection(again),
            _selected_before_test(order, data),
            *_columns(again, made, proven),
        ),
        proof=proven.proof,
        declared_columns=proven.declared,
    )


def _check(name: str, failures: Sequence[str], passed: str, *, otherwise: CheckStatus = "passed") -> CertificateCheck:
    return CertificateCheck(
        name=name, status="failed" if failures else otherwise, detail="; ".join(failures) if failures else passed
    )


def _bar_times(tables: Sequence[FeatureTable]) -> CertificateCheck:
    failures = []
    for table in tables:
        whole_ms = EARLIEST_FIXING_MS if table.calendar == "fixings" else TIMEFRAMES_MS[table.timeframe]
        if (np.diff(table.opened_ms) <= 0).any() or (np.diff(table.available_at_ms) < 0).any():
            failures.append(f"bars of {table.symbol} stand twice, or not in the order of time")
        early = int(np.sum(table.available_at_ms < table.opened_ms + whole_ms))
        if early:
            failures.append(f"{early} bars of {table.symbol} count as known before they ended")
    return _check("bar_times", failures, "every bar stands once, in order, and counts as known when it has ended")


def _recomputed(again: Recomputation, proven: ColumnProof) -> list[CertificateCheck]:
    """What moved when later bars were others, or missing; what a store cannot make again has another proof, or none."""
    replaced, cut = again.num_compared["replaced"], again.num_compared["cut"]
    can, moved = again.recomputing is not None, again.moved
    is_proven = can or proven.proof is not None
    trivial: CheckStatus = "passed" if is_proven else "unprovable"
    by_hand = "" if can else "; the feature store made the columns, and it cannot make them again from other bars"
    unseen: CheckStatus = "passed" if is_proven and cut else "unprovable"

    def failures(kind: str) -> list[str]:
        return [moved[kind]] if kind in moved else []

    columns = "columns, features, past volatility and spread stayed the same"
    checks = [
        _check(
            "features_future_replaced", failures("features"),
            f"{columns} up to {replaced} moments after which every bar was replaced{by_hand}", otherwise=trivial,
        ),
        _check("features_future_cut", failures("cut"), f"{columns} up to {cut} moments at which the bars were cut off"
               f"{by_hand}", otherwise=unseen),
    ]  # fmt: skip
    if again.order.targets:
        checks.append(_check("labels_known", failures("labels"), "labels known by those moments stayed the same"))
    scaling = (
        "scaler, fitted rules, parts and scaled rows stayed the same when bars after the training part were replaced"
    )
    return [*checks, _check("scaling", failures("scaling"), scaling)]


def _selection(again: Recomputation) -> list[CertificateCheck]:
    """A search among some of its candidates, on the true bars and on bars that are others after the training part."""
    candidates = again.order.candidates
    if not candidates:
        return []
    some = candidates[:: -(-len(candidates) // SELECTION_CANDIDATES)]
    true = _searched(again, again.data, some)
    other = _searched(again, again.replaced(again.data.windows.borders_ms["validation"]), some)
    same = true.outputs == other.outputs and true.findings == other.findings
    failures = (
        []
        if same
        else ["the search chose or scored features otherwise when bars after the training part were replaced"]
    )
    return [_check("selection", failures, f"a search among {len(some)} candidates, made again, came out the same")]


def _searched(again: Recomputation, data: TrainingData, candidates: Sequence[Expression]) -> Trained:
    problem = TrainingProblem(
        windows=data.windows,
        targets=again.order.targets,
        seed=again.seed,
        costs=again.order.costs,
        fill=data.tables[0].fill,
        tables=data.tables,
        candidates=tuple(candidates),
        regimes=data.labelling.regimes,
        profiles=data.labelling.profiles,
    )
    return again.order.family.train(problem, accelerator=Cpu(), report=SilentReport(again.report.check))


def _selected_before_test(order: TrainingOrder, data: TrainingData) -> CertificateCheck:
    until_ms, test_ms = order.derivation.selected_until_ms, data.windows.borders_ms["test"]
    failures = []
    if until_ms > test_ms:
        failures.append(
            f"a feature set was chosen on labels known until {iso_of_ms(until_ms)}, and this test part begins at "
            f"{iso_of_ms(test_ms)}: search features again on data before it"
        )
    return _check("selected_before_test", failures, "no feature set was chosen on labels of this test part")


def _ready_made(again: Recomputation) -> set[str]:
    """The columns that nobody can make again: the bars' own beside prices, or whatever a store out of reach made.

    What an expression reads of another series is one of them where any column behind it is.
    """
    if again.recomputing is None:
        delivered = {name for table in again.data.tables for name in table.columns}
        return {name for name in delivered if not all(leaf.name in PRICES for leaf in leaves_of(name))}
    read = {*again.order.derivation.base_columns, *columns_of(again.order.candidates)}
    own = again.own_columns - PRICES
    return {name for name in read if any(leaf.name in own for leaf in leaves_of(name))}


def _columns(again: Recomputation, made: set[str], proven: ColumnProof) -> list[CertificateCheck]:
    """How ready-made columns are proven, and what they and the features made of them tell."""
    status: CheckStatus = "unprovable" if proven.proof is None else "passed"
    checks = [_check("ready_made_columns", [], proven.reason, otherwise=status)]
    if not made:
        return checks
    derivation = again.order.derivation
    derived = [name for name, each in derivation.parsed.items() if made & set(each.base_columns)]
    copies, joins = [], []
    for table, rows, past in zip(again.data.tables, again.data.labelling.rows, _pasts(again), strict=True):
        values = {**table.columns, **dict(zip(derivation.features, rows.x_NF.T, strict=True))}
        for name in dict.fromkeys([*sorted(made), *derived]):
            again.report.check()
            if name in values:
                column_N = np.asarray(values[name])
                copies += _told(name, table.symbol, near_copy(column_N, past))
                joins += _told(name, table.symbol, joined_ahead(column_N, past))
    return [
        *checks,
        _check("near_copies", copies, "none of them tells more of the target than is plausible"),
        _check("look_ahead_joins", joins, "none of them tells at its steps what happens until the next"),
    ]


def _told(name: str, symbol: str, telling: Telling | None) -> list[str]:
    if telling is None:
        return []
    how = f" ({telling.how})" if telling.how else ""
    return [
        f"{name} of {symbol} tells {telling.share:.0%} of {telling.outcome}{how}, which no honest column does: look at "
        "when its values were known"
    ]


def _pasts(again: Recomputation) -> list[Past]:
    """What each symbol's columns are asked against, up to the untouched test part."""
    windows, found, begin = again.data.windows, [], 0
    test_ms = windows.borders_ms["test"]
    for table in again.data.tables:
        rows = slice(begin, begin + len(table))
        begin = rows.stop
        known_N = windows.label_available_at_ms_R[rows] <= test_ms
        outcomes = [
            Outcome(target.name, np.where(known_N, windows.own_labels_RK[rows, number], np.nan), target.reach)
            for number, target in enumerate(again.order.targets)
        ]
        until = int(np.searchsorted(table.available_at_ms, test_ms, side="right"))
        found.append(Past(np.asarray(table.columns["close"]), outcomes, until, again.order.family.lookback))
    return found
