"""Export, int8, calibration and test part: what the tasks share whose product is a network.

Legend: N windows, K outputs.
"""

from abc import abstractmethod
from pathlib import Path

import numpy as np

from ml_workbench_service.contracts.evaluation import Evaluation
from ml_workbench_service.contracts.jobs import Report
from ml_workbench_service.contracts.market import Floats, Ints
from ml_workbench_service.learning.bundle.export import export
from ml_workbench_service.learning.calibration.conformal import NoveltyDetector
from ml_workbench_service.learning.decoders.decoder import Decoder
from ml_workbench_service.learning.interfaces.family import AnyFamily, Trained, TrainingProblem
from ml_workbench_service.learning.interfaces.task import Differentials, Predict, Product, Task
from ml_workbench_service.training.assessment import decide_on_int8, last_rows


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
        decoder = self.calibrate(trained, predict.over(windows, ends), ends, problem)
        novelty = NoveltyDetector.fit(last_rows(windows, windows.parts["train"]), windows.features)
        report.check()
        ends = windows.parts["test"]
        evaluation = self.evaluate(
            trained, decoder, predict.over(windows, ends), ends, problem, is_simulated=is_simulated, predict=predict
        )
        recipe = {"uncertainty": {**decoder.to_json(), "novelty": novelty.to_json()}}
        return Product(trained.outputs, quantization, evaluation, recipe, findings=trained.findings)

    @abstractmethod
    def decisions(self, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> np.ndarray:
        """What the outputs lead to (a direction, a class …): int8 must decide alike."""

    @abstractmethod
    def calibrate(self, trained: Trained, outputs_NK: Floats, ends: Ints, problem: TrainingProblem) -> Decoder:
        """The decoder, fitted on the calibration part's outputs alone."""

    @abstractmethod
    def evaluate(
        self, trained: Trained, decoder: Decoder, outputs_NK: Floats, ends: Ints, problem: TrainingProblem,
        *, is_simulated: bool, predict: "Predict",
    ) -> Evaluation:  # fmt: skip
        """The card's figures, from the untouched test part's outputs.

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
