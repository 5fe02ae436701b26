"""Proof: certificate, reading reports, lineage and costs of a version, as a reader checks them."""

from typing import Any

from nicegui import ui

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, card, facts, grid, heading, note, warnings
from ml_workbench_client.page.components.part import nothing
from ml_workbench_client.page.components.table import amount_cell, status_cell, table
from ml_workbench_service.contracts.evaluation import BacktestReport, Certificate
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.reading_reports import ReadingReport, Series


def certificate(found: Certificate | None) -> None:
    """Whether anything knew the future, check by check."""
    with card("Leakage certificate", anchor="certificate"):
        if found is None:
            nothing("This version is older than the certificates; train it again to get one.")
            return
        with ui.element("div").classes("entry"):
            badge(found.status)
            note(f"proof: {words.readable(found.proof)}" if found.proof else "not proven")
        if found.declared_columns:
            note("Proven by their owner's word alone: " + ", ".join(found.declared_columns))
        table(
            {"name": "Check", "status": "Found", "detail": "What was compared"},
            [
                {"name": words.readable(each.name), "status": status_cell(each.status), "detail": each.detail}
                for each in found.checks
            ],
            label="Checks of the certificate",
        )


def readings(found: tuple[ReadingReport, ...] | tuple[Series, ...]) -> None:
    """How each file of bars was read."""
    with card("Reading reports", anchor="readings"):
        if not found:
            nothing("No file of yours was read: the bars are the embedded sample's, or a Feature Store's.")
        for each in found:
            reading(each)


def reading(each: ReadingReport | Series) -> None:
    """One file's, or one series', reading report."""
    name = each.file if isinstance(each, ReadingReport) else each.origin
    heading(f"{each.symbol} {each.timeframe} · {name}", 3)
    facts(
        {
            "rows used": each.num_rows,
            "rows left out": each.dropped or "none",
            "from": words.day(each.first),
            "to": words.day(each.last),
            "clock": f"{each.time_zone or words.NOTHING} ({words.readable(each.time_zone_from)})",
            "price": f"{each.price_side}, {each.price_unit}",
            "spread": each.spread_unit or "none in the file",
            "columns of your own": each.columns,
        }
    )
    for sentence in each.notes:
        note(sentence)
    warnings(each.warnings)


def lineage(found: ModelCard) -> None:
    """Where the version came from."""
    origin = found.lineage
    with card("Lineage", anchor="lineage"):
        facts(
            {
                "parent version": origin.parent_version,
                "data": words.readable(found.data_source),
                "its fingerprint": origin.data_fingerprint,
                "seeds": origin.seeds,
                "digest": found.digest,
                "size": f"{found.size_bytes / 1024:,.0f} KiB",
                "tracking run": origin.run_id,
                "precision": f"{found.precision}: {found.quantization.reason}",
                "expires": words.day(found.expires_at),
            }
        )
        heading("Libraries", 3)
        facts(origin.library_versions)


def costs(found: BacktestReport | None) -> None:
    """What was charged, symbol by symbol."""
    with card("Costs", anchor="costs"):
        if found is None:
            nothing("Nothing is traded by what this version foretells, so that nothing is charged.")
            return
        with grid():
            facts(
                {
                    "all of it": words.percent(found.total_cost, 3),
                    "of it swap": words.percent(found.swap_cost, 3),
                    "for each decision": f"{words.number(found.mean_cost_bp)} bp",
                    "break-even": f"{words.number(found.break_even_cost_bp)} bp for each unit of turnover",
                    "filled at": words.readable(found.fill),
                    "carry": words.readable(found.carry),
                }
            )
        rows: list[dict[str, Any]] = [
            {"symbol": symbol, **{name: amount_cell(value) for name, value in each.model_dump().items() if _is(value)}}
            for symbol, each in found.costs.items()
        ]
        names = list(dict.fromkeys(name for each in rows for name in each))
        table({name: words.readable(name) for name in names}, rows, label="Costs by symbol", numeric=names[1:])


def _is(value: Any) -> bool:
    return isinstance(value, float | int)
