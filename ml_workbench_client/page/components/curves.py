"""Learning curves while they grow: each event of a job adds a point, and the figure is drawn at most once a second."""

import time
from typing import Any

from nicegui import ui

from ml_workbench_client.page.components.blocks import note
from ml_workbench_client.page.components.figure import FigureView, untitled
from ml_workbench_figures import FigureInputs, draw
from ml_workbench_service.contracts.jobs import JobEvent

EVERY_S = 1.0
RENAMED = {"stop_loss": "validation_loss", "stop_skill": "validation_skill", "lr": "learning_rate"}
"""What events of earlier and present workers call what curves call otherwise."""


class LiveCurve:
    """A figure out of progress events."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {"epoch": [], "seed": []}
        self._seed = 0
        self._is_changed = False
        self._drawn_at = 0.0
        self._view: FigureView | None = None
        self.box = ui.element("div").classes("part")
        with self.box:
            note("No step has been reported yet; the curve begins with the first.")
        self._timer = ui.timer(EVERY_S, self._draw)

    @property
    def num_points(self) -> int:
        """Steps so far."""
        return len(self._columns["epoch"])

    def add(self, event: JobEvent) -> None:
        """One event; what is no step is passed over."""
        metrics = event.data.get("metrics")
        if event.type != "progress" or not metrics or "step" not in event.data:
            return
        epochs = self._columns["epoch"]
        step = event.data["step"]
        if epochs and step <= epochs[-1]:
            self._seed += 1
        for name in (RENAMED.get(each, each) for each in metrics):
            self._columns.setdefault(name, [None] * len(epochs))
        found = {RENAMED.get(name, name): value for name, value in metrics.items()}
        for name, values in self._columns.items():
            if name not in ("epoch", "seed"):
                values.append(found.get(name))
        epochs.append(step)
        self._columns["seed"].append(self._seed)
        self._is_changed = True

    def finish(self) -> None:
        """Nothing more comes."""
        if not self.box.is_deleted:
            self._draw()
            self._timer.deactivate()

    def _draw(self) -> None:
        if not self._is_changed or self.box.is_deleted or time.monotonic() - self._drawn_at < EVERY_S / 2:
            return
        self._is_changed, self._drawn_at = False, time.monotonic()
        figure = untitled(draw("learning_curve", FigureInputs(curves=self._columns)))
        if self._view is None:
            self.box.clear()
            with self.box:
                self._view = FigureView(figure)
        else:
            self._view.show(figure)
