"""How a model fares live: figures of the ledger, its newest predictions, and a prediction on demand."""

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, button, card, facts, heading, note, text, warnings
from ml_workbench_client.page.components.dialogs import attempted
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.predictions import predictions_table
from ml_workbench_client.page.components.table import amount_cell, share_cell, status_cell, table
from ml_workbench_client.page.shell import Visit
from ml_workbench_service.contracts.explanations import ExplainedRecord, Explanation
from ml_workbench_service.contracts.outcomes import MonitoringReport, Share, VersionMonitoring
from ml_workbench_service.contracts.prediction import PredictionRecord

EVERY_S = 5.0
NUM_PREDICTIONS = 50


def live_panel(visit: Visit, model_id: str) -> None:
    """Monitoring, predictions, and a button that asks for one."""
    with card("Ask it now", aside="with the newest bars that the service has"):
        answer = ui.element("div").classes("part")

        async def ask() -> None:
            found = await attempted(lambda: _asked(visit, model_id))
            if found is not None:
                answer.clear()
                with answer:
                    _answer(found)
                await newest.refresh()

        button("Predict", on_click=ask)
    Part(
        lambda: visit.bench.model(model_id).monitoring(),
        _monitoring,
        is_empty=lambda found: not found.versions,
        empty="No live version of this model has predicted anything. Deploy it; what it says is measured here.",
        every_s=EVERY_S,
    )
    with card("Newest predictions and outcomes"):
        newest = Part(
            lambda: visit.bench.predictions(model_id=model_id).first(NUM_PREDICTIONS),
            lambda found: predictions_table(list(found)),
            empty="No live prediction is recorded. Those of the deployed version are; ask it, or replay a range.",
            every_s=EVERY_S,
        )


async def _asked(visit: Visit, model_id: str) -> PredictionRecord:
    """With reasons, where the model's family has any."""
    model = visit.bench.model(model_id)
    family, types = (await model.card).family, (await visit.bench.model_types).model_types
    explaining = {each.name for kind in types for each in kind.families if each.explains_answers}
    return await (model.explain() if family in explaining else model.predict())


def _why(explanation: Explanation) -> None:
    """What each feature added, an output a table; the unit stands below."""
    heading("Why", 3)
    for each in explanation.outputs:
        told = {"(base)": each.base, **each.contributions, "(together)": each.raw}
        table(
            {"feature": "Feature", "adds": f"Adds to {words.readable(each.output)}"},
            [{"feature": name, "adds": amount_cell(value)} for name, value in told.items()],
            label=f"What each feature added to {each.output}",
            numeric=("adds",),
        )
    unit = "in the target's unit" if explanation.unit == "target" else "in logits, before they become probabilities"
    note(f"TreeSHAP over the whole window, {unit}; it explains the model, not the market.")


def _answer(found: PredictionRecord) -> None:
    with ui.element("div").classes("entry"):
        badge(found.direction if found.status == "ok" else "abstain", "calm" if found.status == "ok" else "warn")
        text(
            f"{found.symbol} {found.timeframe}: {words.plain(found.prediction)}"
            f"{f' ({found.label})' if found.label else ''}"
        )
    facts(
        {
            "confidence": words.percent(found.confidence),
            "interval": f"{words.number(found.interval.lower)} to {words.number(found.interval.upper)}"
            if found.interval
            else None,
            "about the bar at": words.moment(found.as_of),
            "valid until": words.moment(found.valid_until),
            "role": found.role,
            "novelty": found.novelty.score if found.novelty else None,
            "abstains because": [words.readable(each) for each in found.abstain_reasons] or None,
        }
    )
    warnings([words.readable(each) for each in found.warnings])
    if isinstance(found, ExplainedRecord) and found.explanation is not None:
        _why(found.explanation)


def _monitoring(found: MonitoringReport) -> None:
    for each in found.versions:
        with card(f"Live figures of {each.version}", aside=f"{each.num_predictions:,} predictions"):
            _version(each)


def _version(each: VersionMonitoring) -> None:
    if each.live_verdict is not None:
        with ui.element("div").classes("entry"):
            badge(each.live_verdict.verdict)
            text(each.live_verdict.reason)
    warnings([words.readable(word) for word in each.warnings])
    facts(
        {
            "outcomes known": each.num_outcomes,
            "open": each.num_open,
            "abstained": each.num_abstained,
            "about the past, not counted": each.num_not_live,
            "direction right": _share(each.direction_accuracy),
            "class right": _share(each.accuracy),
            "interval held": _share(each.coverage.coverage) if each.coverage else None,
            "mean absolute error": each.error.mae if each.error else None,
            "against its baseline": each.error.mae_ratio if each.error else None,
            "calibration error": each.calibration.expected_calibration_error if each.calibration else None,
        }
    )
    heading("Drift of its inputs", 3)
    if each.drift is None:
        note(each.drift_reason or "Nothing to compare yet.")
        return
    table(
        {"feature": "Feature", "state": "State", "psi": "PSI", "threshold": "By chance", "outside": "Outside training"},
        [
            {
                "feature": one.feature,
                "state": status_cell(one.state),
                "psi": amount_cell(one.psi),
                "threshold": amount_cell(one.psi_threshold),
                "outside": share_cell(one.outside_share),
            }
            for one in each.drift.features
        ],
        label="Drift by feature",
        numeric=("psi", "threshold", "outside"),
    )


def _share(found: Share | None) -> str | None:
    if found is None or found.value is None:
        return None
    error = f" ± {words.percent(found.standard_error)}" if found.standard_error is not None else ""
    return f"{words.percent(found.value)}{error} of {found.num:,}"
