"""Model: one version of a model: verdict, figures, proof, how it fares live, and what can be done with it."""

from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import proof, words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, link, note, row, text, warnings
from ml_workbench_client.page.components.dialogs import attempted, confirmed
from ml_workbench_client.page.components.part import Part, nothing
from ml_workbench_client.page.components.set_aside import set_aside
from ml_workbench_client.page.components.table import Cell, status_cell, table, time_cell
from ml_workbench_client.page.components.todays_verdict import verdict_of
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_client.page.views.deploying import ask_to_deploy
from ml_workbench_client.page.views.model_desk import desk
from ml_workbench_client.page.views.model_figures import figures
from ml_workbench_client.page.views.model_live import live_panel
from ml_workbench_client.page.views.model_verdict import earned, verdict
from ml_workbench_service.contracts.models import ModelCard

EVERY_S = 10.0
TABS = ("Summary", "Figures", "Desk", "Live", "Proof", "Versions")


@view("/models/{model_id}", "Model", named="model_id")
def model(visit: Visit, model_id: str, version: str = "") -> None:
    """The version asked for, else the live one, else the newest."""
    handle = visit.bench.model(model_id, version or None)

    async def fetch() -> ModelCard:
        return await visit.bench.model(model_id, version or None).card

    Part(fetch, lambda found: _head(visit, found), every_s=EVERY_S)
    with ui.tabs().classes("tabs").props("align=left no-caps inline-label outside-arrows mobile-arrows") as tabs:
        for name in TABS:
            ui.tab(name)
    with ui.tab_panels(tabs, value=TABS[0]).props("animated=false keep-alive=false"):
        with ui.tab_panel("Summary"):
            Part(fetch, _summary)
        with ui.tab_panel("Figures"):
            Part(fetch, lambda found: figures(visit, found))
        with ui.tab_panel("Desk"):
            Part(fetch, lambda found: desk(visit, found))
        with ui.tab_panel("Live"):
            live_panel(visit, model_id)
        with ui.tab_panel("Proof"):
            Part(fetch, _proof)
        with ui.tab_panel("Versions"):
            Part(lambda: handle.set_aside, set_aside)
            with card("Versions"):
                Part(lambda: handle.versions.all(), lambda found: _versions(list(found)))


def _head(visit: Visit, found: ModelCard) -> None:
    with card():
        with row():
            text(f"{found.name} {found.version}", "strong")
            badge(found.status)
            badge(verdict_of(found).verdict)
        note(
            " · ".join(
                filter(
                    None,
                    (
                        f"{words.readable(found.type)}, {words.readable(found.family)}",
                        ", ".join(found.symbols),
                        f"{found.timeframe} bars",
                        found.target,
                        f"trained {words.moment(found.created_at)} on {words.readable(found.data_source)}",
                    ),
                )
            )
        )
        with row():
            _Actions(visit, found).draw()


class _Actions:
    """What can be done with the version that is looked at."""

    def __init__(self, visit: Visit, found: ModelCard) -> None:
        self._visit, self._card = visit, found
        self._model = visit.bench.model(found.id, found.version)

    def draw(self) -> None:
        """Buttons for what its status allows."""
        if self._card.status == "archived":
            button("Restore", on_click=self.restore)
            button("Purge", on_click=self.purge)
        elif self._card.status == "deployed":
            button("Roll back", on_click=self.roll_back)
            button("Undeploy", on_click=self.undeploy)
        else:
            button("Deploy", on_click=self.deploy, kind="main")
            button("Archive", on_click=self.archive)
        link("Training job", words.path("jobs", self._card.lineage.job_id))

    async def deploy(self) -> None:
        """Asks how, first."""
        _look_again(await ask_to_deploy(self._visit, self._card))

    async def undeploy(self) -> None:
        """Nothing of the model is live any more."""
        sentence = f"Nothing of {self._card.id} answers live any more, and agents close their positions on it."
        if await confirmed("Undeploy?", sentence, "Undeploy", is_grave=True):
            done = f"{self._card.id} is not live any more"
            _look_again(await attempted(lambda: self._model.undeploy(), done))

    async def roll_back(self) -> None:
        """To what was live before."""
        live = await attempted(lambda: self._visit.bench.deployments(model_id=self._card.id, status="live").first(1))
        if not live:
            return
        before = live[0].previous_version or "none"
        sentence = f"{live[0].version} gives way to the version before it ({before}), with the settings that it had."
        if await confirmed("Roll back?", sentence, "Roll back", is_grave=True):
            handle = self._visit.bench.deployment(live[0].id)
            _look_again(await attempted(lambda: handle.roll_back(), "Rolled back"))

    async def archive(self) -> None:
        """Out of the list."""
        version = self._card.version
        sentence = f"{version} is no candidate any more and leaves the list; its files stay, it can be restored."
        if await confirmed("Archive?", sentence, "Archive"):
            _look_again(await attempted(lambda: self._model.archive(), f"{version} is archived"))

    async def restore(self) -> None:
        """Into the list again."""
        _look_again(await attempted(lambda: self._model.restore(), f"{self._card.version} is a candidate again"))

    async def purge(self) -> None:
        """Its files are gone for good."""
        name, version = self._card.id, self._card.version
        sentence = f"The files of {name} {version} are removed and cannot be brought back; what is known of it stays."
        if await confirmed("Purge?", sentence, "Purge", is_grave=True, typed=name):
            done = await attempted(lambda: self._model.purge(confirm=name), f"The files of {version} are gone")
            if done is not None:
                ui.navigate.to(words.path("models"))


def _look_again(done: Any) -> None:
    if done is not None:
        ui.navigate.reload()


def _summary(found: ModelCard) -> None:
    verdict(found)
    earned(found)
    with card("What it is"):
        facts(
            {
                "features": found.features,
                "target": found.targets or found.target,
                "horizon": f"{found.horizon} {'bar' if found.horizon == 1 else 'bars'}",
                "lookback": f"{found.lookback} bars, at least {found.min_window}",
                "outputs": found.outputs,
                "classes": found.classes,
                "epochs": found.epochs_run,
                "windows": found.split.num_windows,
                **{
                    words.readable(name): value
                    for name, value in found.hyperparameters.items()
                    if name != "lookback"  # told above, with the least that answers
                },
            }
        )
        warnings(found.warnings)
        if found.notes:
            note(found.notes)
    with card("Metrics of the test part"):
        facts({words.readable(name): value for name, value in found.metrics.items()})


def _proof(found: ModelCard) -> None:
    proof.certificate(found.certificate)
    proof.readings(found.readings)
    proof.costs(found.evaluation.backtest)
    proof.lineage(found)


def _versions(found: list[ModelCard]) -> None:
    if not found:
        nothing("No version is left.")
        return
    table(
        {"version": "Version", "status": "Status", "verdict": "Verdict", "reason": "Why", "created": "Trained"},
        [
            {
                "version": Cell(each.version, href=words.path("models", each.id, version=each.version)),
                "status": status_cell(each.status),
                "verdict": status_cell(verdict_of(each).verdict),
                "reason": verdict_of(each).reason,
                "created": time_cell(each.created_at),
            }
            for each in found
        ],
        label="Versions",
    )
    names = ",".join(f"{each.id}@{each.version}" for each in found[:6] if each.status != "archived")
    if names.count(",") > 0:
        link("Compare them", words.path("compare", versions=names))
