"""Predictions with what came true of them, one row each."""

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.table import Cell, amount_cell, share_cell, status_cell, table, time_cell
from ml_workbench_service.contracts.outcomes import RecordedPrediction

COLUMNS = {
    "as_of": "Bar", "model": "Model", "symbol": "Symbol", "direction": "Says", "prediction": "Prediction",
    "confidence": "Confidence", "outcome": "Outcome", "realised": "Came true",
}  # fmt: skip


def predictions_table(found: list[RecordedPrediction]) -> None:
    """Newest first."""
    table(
        COLUMNS,
        [
            {
                "as_of": time_cell(each.as_of),
                "model": Cell(f"{each.model_id} {each.version}", href=words.path("models", each.model_id)),
                "symbol": f"{each.symbol} {each.timeframe}",
                "direction": each.direction if each.status == "ok" else status_cell("abstain"),
                "prediction": amount_cell(each.prediction) if each.label is None else each.label,
                "confidence": share_cell(each.confidence),
                "outcome": status_cell(each.outcome.state),
                "realised": amount_cell(each.outcome.realised),
            }
            for each in found
        ],
        label="Predictions and outcomes",
        numeric=("prediction", "confidence", "realised"),
    )
