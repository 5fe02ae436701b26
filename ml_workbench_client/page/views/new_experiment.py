"""New experiment: a training's form as the base, what is searched of it, by which sampler and how often."""

from typing import Any

from nicegui import ui

from common_lib.exceptions import DataValidationError
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import button, card, facts, heading, link, note
from ml_workbench_client.page.components.dialogs import attempted
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.request_form import MEASURES, RequestForm, offered
from ml_workbench_client.page.components.search_space import SearchSpaceForm
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.models import FamilyDescription

SAMPLERS = {"tpe": "TPE (learns from trials)", "random": "random", "grid": "grid (every combination)"}
PRUNERS = {"none": "none", "median": "median", "hyperband": "hyperband"}
NUM_TRIALS, MOST_TRIALS = 20, 10_000


@view("/new-experiment", "New experiment")
def new_experiment(visit: Visit) -> None:
    """The form."""
    Part(lambda: offered(visit), lambda found: ExperimentForm(visit, found))


class ExperimentForm(RequestForm):
    """A training's fields, and the search over some of them."""

    usual_name = "My first search"

    def _below(self) -> None:
        with card("Search", aside="which hyper-parameters vary, and where"):
            self._space = ui.element("div").classes("part")
        with card("Trials"), ui.element("div").classes("field-grid"):
            self._sampler = ui.select(SAMPLERS, value="tpe", label="Sampler")
            self._num = ui.number("Number of trials", value=NUM_TRIALS, min=1, max=MOST_TRIALS, precision=0)
            self._num.props('hint="A grid that is left empty here runs every combination"')
            self._pruner = ui.select(PRUNERS, value="none", label="Pruner")
            self._pruner.props('hint="Ends trials early that fall behind"')
            self._minutes = ui.number("Minutes at most", min=0.1, max=43_200)
            self._minutes.props('hint="No trial begins afterwards; empty: no limit"')
            for each in (self._sampler, self._num, self._pruner, self._minutes):
                each.props("outlined dense")
        with card():
            note(
                "Trials are scored on the validation part alone. The winner is evaluated on the test part once, and "
                "every trial counts against it."
            )
            button("Start the experiment", on_click=self._start, kind="main")
            self._outcome = ui.element("div").classes("part").props("aria-live=polite")

    def _describe(self, family: FamilyDescription) -> None:
        self._space.clear()
        with self._space:
            self._searched = SearchSpaceForm(family.hyperparameters, has_horizon=bool(MEASURES.get(self._type.value)))

    @property
    def experiment(self) -> dict[str, Any]:
        """The body of the request.

        Raises:
            DataValidationError: a field cannot be read.
        """
        base = self.request
        found: dict[str, Any] = {
            "name": base["name"],
            "base": base,
            "search_space": self._searched.space,
            "sampler": self._sampler.value,
            "pruner": self._pruner.value,
        }
        if self._num.value is not None:
            found["num_trials"] = int(self._num.value)
        elif self._sampler.value != "grid":
            raise DataValidationError.at("num_trials", "say how many trials; a grid alone knows by itself")
        if self._minutes.value:
            found["timeout_s"] = 60.0 * self._minutes.value
        return found

    async def _start(self) -> None:
        async def send() -> Any:
            return await self._visit.bench.search(**self.experiment)

        started = await attempted(send)
        if started is None:
            return
        self._outcome.clear()
        with self._outcome:
            heading("The search is on its way", 3)
            facts({"trials": started.accepted.get("num_trials")})
            link("Watch its trials", words.path("experiments", started.id))
