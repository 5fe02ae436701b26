"""Export, int8, calibration and test part: what the tasks share whose product is a network.

Legend: N windows, K outputs.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Bools, Floats, Ints
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.calibration.conformal import NOVELTY_THRESHOLD, NoveltyDetector
from ml_workbench_service.learning.data.windows import FEWEST_WINDOWS, Part, Windows
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.interfaces.differentials import Differentials
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Predict, Product, SizingChoice, Task
from ml_workbench_service.market.trading_series import Positions
from ml_workbench_service.training.assessment import decide_on_int8, last_rows
from ml_workbench_service.training.evaluation_rows import EVALUATED, Columns, part_rows, write_rows


@dataclass(frozen=True)
class Served:
    """What answers, and the serving network's outputs on each judged part's `decided_rows`."""

    decoder: Decoder
    novelty: NoveltyDetector
    predict: Predict
    outputs: Mapping[Part, Floats]
    problem: TrainingProblem


def decided_rows(windows: Windows, part: Part) -> Ints:
    """(N,) the part's rows at which serving would be asked, labelled or not: what is kept row by row."""
    return np.union1d(windows.parts[part], windows.decisions[part])


def is_judged(windows: Windows, part: Part) -> Bools:
    """(N,) which of `decided_rows` have a label of the part."""
    return np.isin(decided_rows(windows, part), windows.parts[part])


class NetworkTask(Task, registers=False):
    """A model type whose versions answer through a graph."""

    def package(
        self, trained: Trained, draft: Path, problem: TrainingProblem, *, family: AnyFamily, is_simulated: bool,
        report: Report,
    ) -> Product:  # fmt: skip
        """Exports the graph, decides on int8, calibrates, and scores the test part.

        Order matters: int8 is judged and the decoder is fitted on the calibration part; the test part is read once,
        last.
        """
        report.say("exporting and judging")
        windows = problem.windows
        lengths = sorted({family.min_window, (family.min_window + windows.lookback) // 2, windows.lookback})
        float32 = export(trained, draft, num_features=len(windows.features), lengths=lengths, seed=problem.seed)
        quantization, int8 = decide_on_int8(float32, draft, trained, problem, decisions=self.decisions)
        predict = Predict(float32, int8)
        report.check()
        ends = windows.parts["calibration"]
        outputs: dict[Part, Floats] = {}
        outputs["calibration"] = predict.over(windows, decided_rows(windows, "calibration"))
        judged_N = is_judged(windows, "calibration")
        decoder = self.calibrate(trained, outputs["calibration"][judged_N], ends, problem)
        novelty = NoveltyDetector.fit(last_rows(windows, windows.parts["train"]), windows.features)
        report.check()
        decoder, sized = self.size(Served(decoder, novelty, predict, outputs, problem))
        if sized is not None and problem.note_rules is not None:
            problem.note_rules(sized.daily)  # whoever is killed from here on may have seen the test part
        for part in ("validation", "test"):
            outputs[part] = predict.over(windows, decided_rows(windows, part))
        served = Served(decoder, novelty, predict, outputs, problem)
        evaluation, differentials = self._as_served(trained, served, is_simulated=is_simulated)
        write_rows(draft, [self._rows(part, served) for part in EVALUATED])
        recipe = {"uncertainty": {**decoder.to_json(), "novelty": novelty.to_json()}}
        return Product(
            trained.outputs, quantization, evaluation, recipe, findings=trained.findings,
            differentials=tuple(differentials), sized=sized,
        )  # fmt: skip

    def size(self, served: Served) -> tuple[Decoder, SizingChoice | None]:
        """The decoder with the position rule that did best on the calibration part, where one may be chosen."""
        return served.decoder, None

    def _as_served(
        self, trained: Trained, served: "Served", *, is_simulated: bool
    ) -> tuple[Evaluation, list[Differentials]]:
        """The test part's rows that serving answers; while it abstains a signal is flat, as between windows.

        Where it answers next to none the figures are of all rows, and no verdict is made of them.
        """
        problem, windows = served.problem, served.problem.windows
        ends, judged_N = windows.parts["test"], is_judged(windows, "test")
        outputs_NK, said_N = served.outputs["test"][judged_N], self.answered("test", served)
        answers_N = said_N[judged_N]
        num_answered = int(answers_N.sum())
        if num_answered >= FEWEST_WINDOWS["test"]:
            ends, outputs_NK = ends[answers_N], outputs_NK[answers_N]
            problem = replace(
                problem,
                windows=replace(
                    windows,
                    parts={**windows.parts, "test": ends},
                    decisions={**windows.decisions, "test": decided_rows(windows, "test")[said_N]},
                ),
            )
        found, differentials = self.measure(
            trained, served.decoder, outputs_NK, ends, problem, is_simulated=is_simulated, predict=served.predict
        )
        share = num_answered / len(answers_N)
        found = found.model_copy(update={"num_answered": num_answered, "answered_share": share})
        return found, differentials

    def answered(self, part: Part, served: "Served") -> Bools:
        """(N,) which of the part's `decided_rows` serving answers."""
        windows = served.problem.windows
        ends = decided_rows(windows, part)
        answers_N = self.answers(served.decoder, served.outputs[part], ends, served.problem)
        if served.decoder.abstains_when_novel:
            answers_N = answers_N & (served.novelty.scores(windows.last_rows(ends)) <= NOVELTY_THRESHOLD)
        return answers_N

    def _rows(self, part: Part, served: "Served") -> Columns:
        """Of `evaluation.parquet`; a policy walks over the rows that are answered, its own position fed back."""
        problem, outputs_NK = served.problem, served.outputs[part]
        ends, answers_N = decided_rows(problem.windows, part), self.answered(part, served)
        positions_N: Positions | None = np.zeros(len(ends))
        held_N = self.held(served, outputs_NK[answers_N], ends[answers_N]) if answers_N.any() else None
        if held_N is None:
            positions_N = None
        elif positions_N is not None:
            positions_N[answers_N] = held_N
        said = self.columns(served.decoder, outputs_NK, ends, problem)
        if served.decoder.holds_positions and positions_N is not None:
            said = dict.fromkeys(("prediction", "direction", "action"), positions_N)
        return part_rows(part, said, positions_N, ends, problem, answers_N=answers_N)

    def columns(
        self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem
    ) -> dict[str, np.ndarray]:
        """What the decoder makes of each row, by column of `evaluation.parquet`."""
        return {}

    def held(self, served: "Served", outputs_NK: Floats, ends: Ints) -> Positions | None:
        """(N,) the signal's positions at these rows, as the card's backtest has them; None: nothing is traded."""
        return self.positions(served.predict, ends, served.problem)

    def answers(self, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Bools:
        """(N,) whether the decoder answers each row, rather than call its own answer worthless."""
        return np.ones(len(ends), dtype=bool)

    @abstractmethod
    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """What the outputs lead to (a direction, a class …): int8 must decide alike."""

    @abstractmethod
    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Decoder:
        """The decoder, fitted on the calibration part's outputs alone."""

    def evaluate(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: "Predict",
    ) -> Evaluation:  # fmt: skip
        """`measure`'s figures."""
        found, _ = self.measure(trained, decoder, outputs_NK, ends, problem, is_simulated=is_simulated, predict=predict)
        return found

    @abstractmethod
    def measure(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: "Predict",
    ) -> tuple[Evaluation, list[Differentials]]:  # fmt: skip
        """The card's figures, from the untouched test part's outputs, and what its comparisons are made of.

        Args:
            trained: what the family handed over.
            decoder: the fitted decoder.
            outputs_NK: the serving network's outputs on the test part.
            ends: the test part's windows.
            problem: data and costs.
            is_simulated: whether the prices are simulated, so that skill would be chance.
            predict: the serving network, for tasks that ask it about other rows than the test part's own.
        """

    def differentials(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, predict: "Predict",
    ) -> list[Differentials]:  # fmt: skip
        """What `evaluate`'s comparisons are made of, to be pooled with those of other segments; none where nothing
        is bet on."""
        return []
