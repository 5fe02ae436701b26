"""Comparison: versions side by side: what they are, their verdicts, their figures; and on the rows they share."""

import asyncio
from typing import Any

from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import card, note
from ml_workbench_client.page.components.figure import FigureView, untitled
from ml_workbench_client.page.components.part import Part
from ml_workbench_client.page.components.table import Cell, status_cell, table
from ml_workbench_client.page.components.todays_verdict import verdict_of
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.models import ModelCard

MOST = 6
_ON_COMMON = {
    "mean_loss": "Loss", "skill": "Skill", "coverage": "Interval held", "net_log_return": "Net return",
    "sharpe": "Sharpe", "hit_rate": "Hit rate",
}  # fmt: skip


@view("/compare", "Compare")
def compare(visit: Visit, versions: str = "") -> None:
    """`versions`: `a@1.0.0,b@1.2.0`."""
    names = [each for each in versions.split(",") if "@" in each][:MOST]

    async def cards() -> list[ModelCard]:
        pairs = [each.partition("@") for each in names]
        return list(await asyncio.gather(*(visit.bench.model(one, version).card for one, _, version in pairs)))

    with card("Side by side"):
        Part(cards, _table, empty="Nothing is chosen. Choose two or more in the list of models.")
    if len(names) > 1:
        with card("On the rows that all of them answered", anchor="common"):
            Part(lambda: visit.bench.compare(*names), _common)
        with card("Equity", aside="net log return of the test parts"):
            Part(lambda: _equities(visit, names), FigureView)


def _table(found: list[ModelCard]) -> None:
    lines: list[tuple[str, list[Any]]] = [
        ("Verdict", [status_cell(verdict_of(each).verdict) for each in found]),
        ("Why", [verdict_of(each).reason for each in found]),
        ("Status", [words.readable(each.status) for each in found]),
        ("Type", [f"{words.readable(each.type)}, {words.readable(each.family)}" for each in found]),
        ("Symbols", [", ".join(each.symbols) for each in found]),
        ("Target", [each.target or words.NOTHING for each in found]),
        ("Data", [words.readable(each.data_source) for each in found]),
        ("Net return", [_backtest(each, "net_log_return") for each in found]),
        ("Gross return", [_backtest(each, "gross_log_return") for each in found]),
        ("Costs", [_backtest(each, "total_cost") for each in found]),
        ("Deepest drawdown", [_backtest(each, "max_drawdown") for each in found]),
    ]  # fmt: skip
    shared = [name for name in found[0].metrics if all(name in each.metrics for each in found)]
    lines += [(words.readable(name), [words.number(each.metrics[name], 4) for each in found]) for name in shared]
    columns = {"what": "", **{str(index): f"{each.name} {each.version}" for index, each in enumerate(found)}}
    rows = [{"what": what, **{str(index): value for index, value in enumerate(values)}} for what, values in lines]
    table(columns, rows, label="Versions side by side", page_rows=100)


def _backtest(found: ModelCard, name: str) -> str:
    backtest = found.evaluation.backtest
    return words.NOTHING if backtest is None else words.percent(getattr(backtest, name), 2, signed=True)


def _common(found: dict[str, Any]) -> None:
    first, last = str(found.get("first", ""))[:10], str(found.get("last", ""))[:10]
    note(f"{found['num_common_rows']:,} rows, {first} to {last}, {', '.join(found['symbols'])}.")
    rows = [
        {
            "version": f"{each['model_id']} {each['version']}",
            **{name: _shown(name, each.get(name)) for name in _ON_COMMON},
        }
        for each in found["versions"]
    ]
    columns = {"version": "Version", **_ON_COMMON}
    table(columns, rows, label="On common rows", numeric=list(_ON_COMMON))
    for each in found["pairs"]:
        p_value = (each.get("diebold_mariano") or {}).get("p_value")
        note(
            f"{each['a']} and {each['b']}: correlation {words.number(each.get('correlation'), 2)}, p-value of "
            f"Diebold and Mariano's test {words.number(p_value, 2)}."
        )
    for sentence in found["notes"]:
        note(sentence)


def _shown(name: str, value: float | None) -> Cell:
    is_share = name in ("skill", "coverage", "net_log_return", "hit_rate")
    return Cell(value, words.percent(value, 2) if is_share else words.number(value))


async def _equities(visit: Visit, names: list[str]) -> dict[str, Any]:
    """Each version's net log return over its own test part, in one figure."""
    pairs = [each.partition("@") for each in names]
    found = await asyncio.gather(*(visit.bench.model(one, version).figure("equity") for one, _, version in pairs))
    data = []
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7b8794", "#56b4e9")
    for name, colour, figure in zip(names, colours, found, strict=False):
        net = [each for each in figure.get("data", ()) if "net" in str(each.get("name", "")).lower()]
        data += [{**each, "name": name, "showlegend": True, "line": {"color": colour}} for each in net[-1:]]
    layout = {**untitled(found[0])["layout"], "annotations": [], "shapes": []}
    return {"data": data, "layout": layout}
