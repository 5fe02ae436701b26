"""`feature_search`: feature selection by mutual information, from the store's indicators and expressions over them."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from ml_workbench_service.accelerators import Accelerator
from ml_workbench_service.contracts.contract import TIMEFRAMES_MS, Contract
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.training import ModelType
from ml_workbench_service.learning.interfaces.family import Family, Trained, TrainingProblem
from ml_workbench_service.market import calendar


class FeatureSearchHyperparameters(Contract):
    """How much is tried, and how much is kept."""

    max_candidates: int = Field(default=300, ge=2, le=2000, description="Most expressions to try.")
    max_features: int = Field(default=12, ge=1, le=64, description="Most expressions to keep.")
    num_shuffles: int = Field(
        default=100, ge=40, le=1000, description="Shuffles of the target that tell what luck reaches."
    )
    num_samples: int = Field(
        default=50, ge=10, le=500, description="Resamples of the data that must choose a feature again."
    )


class FeatureSearch(Family[FeatureSearchHyperparameters]):
    """Selects expressions by held-out information and mRMR (Peng, Long and Ding, IEEE TPAMI 27(8), 2005).

    Candidates are scored out of their own time on the training part alone, against what luck reaches on shuffled
    targets, and must be chosen again by resampled data. Fails where features tell something only together, and where
    nothing tells anything: then the best few come with the warning `no feature beats chance`.
    """

    name = "feature_search"
    model_type = ModelType.FEATURE_ENGINEERING
    is_default = True
    min_window: ClassVar[int] = 1
    library_bytes = 0

    def train(self, problem: TrainingProblem, *, accelerator: Accelerator, report: Report) -> Trained:
        """One selection over all symbols; what is found stands in `findings["selection"]`."""
        from ml_workbench_service.learning.feature_search.scores import SelectionRows
        from ml_workbench_service.learning.feature_search.selection import SelectionSettings, select

        hyper = self.hyperparameters
        windows, target = problem.windows, problem.targets[0]
        tables, begin = [], 0
        for table in problem.tables:
            rows = slice(begin, begin + len(table))
            begin = rows.stop
            tables.append(
                SelectionRows(
                    columns=table.columns,
                    opened_ms=table.opened_ms,
                    available_at_ms=table.available_at_ms,
                    runs=calendar.runs(table.opened_ms, TIMEFRAMES_MS[table.timeframe], table.calendar),
                    labels=windows.own_labels_RK[rows, 0],
                    label_available_at_ms=np.where(
                        np.isfinite(windows.own_labels_RK[rows, 0]), windows.label_available_at_ms_R[rows], -1
                    ),
                )
            )
        selection = select(
            problem.candidates,
            tables,
            SelectionSettings(
                is_move=target.needs_price,
                num_classes=len(target.classes),
                max_features=hyper.max_features,
                num_shuffles=hyper.num_shuffles,
                num_samples=hyper.num_samples,
            ),
            end_ms=windows.borders_ms["validation"],
            seed=problem.seed,
            report=report,
        )
        names = tuple(each.expression.name for each in selection.chosen)
        return Trained(
            outputs=names,
            weights={},
            network={"kind": "feature_set", "expressions": [each.expression.text for each in selection.chosen]},
            graph=_no_network,
            predict=_no_network,
            epochs_run=1,
            best_epoch=1,
            warnings=tuple(selection.warnings),
            findings={"selection": selection},
            can_quantize=False,
        )

    def memory_bytes(self, num_rows: int, num_features: int) -> int:
        """Every candidate's bins, the columns evaluated together, and the fetched columns."""
        hyper = self.hyperparameters
        return int(num_rows * (2 * hyper.max_candidates + 8 * (64 + num_features)) + 8 * hyper.max_candidates**2)

    def seconds(self, num_windows: int) -> float:
        """Measured: 258 candidates on 19,300 rows with 150 passes take 7 s."""
        hyper = self.hyperparameters
        passes = hyper.num_shuffles + hyper.num_samples
        return float(5.0 + 7.0 * num_windows / 19_300 * hyper.max_candidates / 258 * passes / 150)


def _no_network(*_: Any) -> Any:
    raise TypeError("a feature set has no network and no graph: its expressions are evaluated by market.derivation")
