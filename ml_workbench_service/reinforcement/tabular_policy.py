"""Tabular policy: Q-learning over bins of the last row's features; every row of the training part is one state.

Bins are quantiles of the training windows' last rows after the window stage, so each has about as many rows as the
next; the position held is part of the state. `reinforcement/tabular_q.py` learns the table. Needs numba.

Legend: R rows, N decisions, F features, E edges of a feature, S = 3 * bins states, A = 3 actions.
"""

from dataclasses import dataclass

import numpy as np

from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats32, Ints
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.learning.data.windows import Windows
from ml_workbench_service.learning.decoders.action import greedy_actions
from ml_workbench_service.learning.interfaces.family import Trained, TrainingProblem
from ml_workbench_service.market.trading_series import segment_starts, step_table
from ml_workbench_service.reinforcement.environment import walk
from ml_workbench_service.reinforcement.hyperparameters import TabularHyperparameters
from ml_workbench_service.reinforcement.policy_family import Market, Standing
from ml_workbench_service.reinforcement.policy_network import table_graph
from ml_workbench_service.reinforcement.tabular_q import QSettings, VectorTabularQ
from ml_workbench_service.reinforcement.tabular_q_kernels import FLAT, NUM_ACTIONS

MOST_ROWS = 200_000
"""Rows that the quantiles are read from; more move no edge that matters."""
SMALLEST_GAP = 1e-5
"""Values nearer than this are one value: the rounding of a window's mean must not decide a bin."""
NO_EDGE = np.finfo(np.float32).max
"""Beyond any value: rows are cut at 1e9."""


@dataclass(frozen=True)
class TabularPolicy:
    """A table of values and the edges of its bins.

    Attributes:
        values_SA: by `tabular_q_kernels.state_of`.
        edges_FE: ascending; the largest float32 where a feature has fewer bins.
        is_level_F: the columns from which the window's mean is subtracted.
    """

    values_SA: Floats32
    edges_FE: Floats32
    is_level_F: tuple[bool, ...]

    def answer(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """Outputs and last rows, as the exported graph must give them; flat unless positions are given."""
        last_NF = last_rows(rows_NTF, self.is_level_F)
        positions = np.zeros(len(last_NF)) if positions_N is None else np.clip(np.round(positions_N), -1, 1)
        states_N = bins_of(last_NF, self.edges_FE) * NUM_ACTIONS + positions.astype(np.int64) + FLAT
        return RawPrediction(self.values_SA[states_N], last_NF)

    def act(self, rows_NTF: Floats32, positions_N: Floats32) -> Ints:
        """The greedy actions (N,)."""
        return greedy_actions(self.answer(rows_NTF, positions_N).outputs_NK)


def last_rows(rows_NTF: Floats32, is_level_F: tuple[bool, ...]) -> Floats32:
    """The windows' last rows, level columns less their mean over the window."""
    means_NF = rows_NTF.mean(axis=1) * np.array(is_level_F, dtype=np.float32)
    last: Floats32 = rows_NTF[:, -1] - means_NF
    return last


def bins_of(last_NF: Floats32, edges_FE: Floats32) -> Ints:
    """The bin (N,) of each row: one digit a feature, the last feature's varying fastest."""
    bins = np.zeros(len(last_NF), dtype=np.int64)
    for feature, edges_E in enumerate(edges_FE):
        bins = bins * (len(edges_E) + 1) + np.searchsorted(edges_E, last_NF[:, feature], side="left")
    return bins


def quantile_edges(last_NF: Floats32, num_bins: int) -> Floats32:
    """Edges (F, num_bins - 1) between values, never on one; equal shares of the rows as far as the values allow."""
    edges_FE = np.full((last_NF.shape[1], num_bins - 1), NO_EDGE, dtype=np.float32)
    shares = np.arange(1, num_bins) / num_bins
    for feature, values_N in enumerate(last_NF.T):
        distinct = np.unique(values_N)
        distinct = distinct[np.append(True, np.diff(distinct) > SMALLEST_GAP)]
        if len(distinct) < 2:
            continue
        places = np.clip(np.searchsorted(distinct, np.quantile(values_N, shares), side="right"), 1, len(distinct) - 1)
        edges = np.unique((distinct[places - 1] + distinct[places]) / 2)
        edges_FE[feature, : len(edges)] = edges
    return edges_FE


def train(
    problem: TrainingProblem, hyperparameters: TabularHyperparameters, *, outputs: tuple[str, ...], report: Report
) -> Trained:
    """Passes over the training part until `patience` of them brought no better walk over the validation part; the best
    table.

    Args:
        outputs: names of the three outputs.
    """
    hyper, windows, market = hyperparameters, problem.windows, Market.of(problem)
    edges_FE = quantile_edges(_last_rows(windows, market.train[:: len(market.train) // MOST_ROWS + 1]), hyper.bins)
    num_bins = hyper.bins ** len(windows.features)
    rewards = step_table(market.series, market.train) * market.units_R[market.train][:, None, None]
    runs = VectorTabularQ(
        rewards,
        bins_of(_last_rows(windows, market.train), edges_FE),
        segment_starts(market.train),
        num_bins=num_bins,
        settings=QSettings.of([hyper.of_run(problem.seed)]),
    )
    state = Standing({"kept": runs.values_LSA[0].copy()})
    saved = None if problem.checkpoint is None else problem.checkpoint.load()
    if saved is not None:
        runs.restore(saved.arrays)
        state = Standing.restored({"kept": np.array(saved.arrays["kept"])}, saved.state)
        report.say(f"going on after epoch {state.epoch}")
    while state.epoch < hyper.epochs and state.epoch - state.best_epoch < hyper.patience:
        report.check()
        (earned_in_training,) = runs.epoch()
        report.check()
        policy = TabularPolicy(runs.values_LSA[0].astype(np.float32), edges_FE, windows.scaler.is_level_F)
        earned = walk(policy.act, market.series, market.validation, lookback=windows.lookback)
        state.end_epoch(float(earned.rewards_N.sum()), {"kept": runs.values_LSA[0].copy()})
        if problem.checkpoint is not None and problem.checkpoint.due():
            problem.checkpoint.save(runs.state() | state.kept, state.counts())
        report(
            state.epoch,
            hyper.epochs,
            train_reward=float(earned_in_training) / len(market.train),
            stop_net_log_return=float(earned.rewards_N.sum()),
            stop_gross_log_return=float(earned.gross_N.sum()),
            stop_share_in_market=float(np.mean(earned.positions_N != 0)),
        )
    policy = TabularPolicy(state.kept["kept"].astype(np.float32), edges_FE, windows.scaler.is_level_F)
    return _trained(policy, runs, state, outputs=outputs)


def _last_rows(windows: Windows, rows_N: Ints) -> Floats32:
    """The last rows of the windows that end there, a batch at a time."""
    batches = [rows_N[begin : begin + 4096] for begin in range(0, len(rows_N), 4096)]
    return np.concatenate([last_rows(windows.gather(each), windows.scaler.is_level_F) for each in batches])


def _trained(policy: TabularPolicy, runs: VectorTabularQ, state: Standing, *, outputs: tuple[str, ...]) -> Trained:
    num_visited = int(np.sum(runs.visits_LSA[0].sum(axis=1) > 0))
    return Trained(
        outputs=outputs,
        weights={"values": policy.values_SA, "edges": policy.edges_FE},
        network={
            "kind": "policy_table",
            "num_states": len(policy.values_SA),
            "num_features": len(policy.edges_FE),
            "num_outputs": len(outputs),
        },
        graph=lambda: table_graph(policy.values_SA, policy.edges_FE, is_level_F=policy.is_level_F),
        predict=policy.answer,
        epochs_run=state.epoch,
        best_epoch=state.best_epoch,
        findings={"table": {"num_states": len(policy.values_SA), "num_visited": num_visited}},
        can_quantize=False,
    )
