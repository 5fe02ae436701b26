"""Overview: is anything wrong, what is live, why is there no skill, what would it have earned."""

import asyncio

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from ml_workbench_client.page.alarms import NUM_LIVE, ServiceOverview, look
from ml_workbench_client.page.components import words
from ml_workbench_client.page.components.blocks import badge, card, figure_of, grid, link, note, text
from ml_workbench_client.page.components.part import Part, nothing
from ml_workbench_client.page.components.progress import progress_line
from ml_workbench_client.page.components.todays_verdict import verdict_of
from ml_workbench_client.page.shell import Visit, view
from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.contracts.outcomes import RecordedPrediction

EVERY_S = 5.0
NUM_CARDS = 6
NUM_PREDICTIONS = 6
RUNNING = ("queued", "running", "cancelling")
MOST_DETAIL = 240
"""Letters of a line of readiness: with a hundred models live some lines name them all."""


@view("/", "Overview")
def overview(visit: Visit) -> None:
    """The start view: three questions, each answered here and one click from the details."""
    Part(lambda: look(visit.bench), _whole, every_s=EVERY_S)
    with grid("wide"):
        with card("Why no skill?", aside="newest models", anchor="skill"):
            Part(
                lambda: _newest(visit),
                _verdicts,
                empty="No model has been trained yet. Train the first one.",
                every_s=EVERY_S,
            )
        with card("What would it have earned?", aside="test part, after all costs", anchor="earned"):
            Part(lambda: _newest(visit), _earnings, empty="Nothing to earn with yet: no model has been trained.")
    with card("Last predictions", aside="of live models"):
        Part(
            lambda: visit.bench.predictions().first(NUM_PREDICTIONS),
            lambda found: _predictions(list(found)),
            empty="No live prediction yet. Deploy a model and ask it: POST /predict, or a model's Live tab.",
            every_s=EVERY_S,
        )


async def _newest(visit: Visit) -> list[ModelCard]:
    models = await visit.bench.models(order="newest").first(NUM_CARDS)
    return list(await asyncio.gather(*(visit.bench.model(each.id, each.version).card for each in models)))


def _whole(found: ServiceOverview) -> None:
    alarms = found.alarms
    with card("Is anything wrong?", anchor="wrong"):
        if not alarms:
            with ui.element("div").classes("entry"):
                badge("ok", "good")
                text("Nothing is wrong: everything that the service works with answers.")
        with ui.element("div").classes("list"):
            for each in alarms[:12]:
                with ui.element("div").classes("entry"):
                    badge("wrong" if each.kind == "bad" else "look", each.kind)
                    link(each.sentence, each.where)
        if len(alarms) > 12:
            note(f"and {len(alarms) - 12} more")
    with grid("wide"):
        with ui.element("div").classes("stack"):
            _live(found)
            _work(found)
        _things(found)


def _live(found: ServiceOverview) -> None:
    num_live = len(found.live)
    with card("Live", aside=f"{num_live} deployed" if num_live <= NUM_LIVE else f"more than {NUM_LIVE} deployed"):
        if not found.live:
            nothing("Nothing is deployed. Open a model and deploy it.")
        with ui.element("div").classes("list"):
            for each in found.live[:6]:
                with ui.element("div").classes("entry"):
                    link(each.name, words.path("models", each.id))
                    badge(each.verdict)
                    note(f"{each.version} · {', '.join(each.symbols)} {each.timeframe} · {each.target or each.type}")
        link("Deployments", "/deployments")


def _work(found: ServiceOverview) -> None:
    running = [each for each in found.jobs if each.status in RUNNING]
    with card("At work"):
        with ui.element("div").classes("headlines"):
            if found.queue is not None:
                figure_of(f"{found.queue.length} / {found.queue.capacity}", "predictions in the queue")
                figure_of(words.duration(found.queue.oldest_age_s), "age of the oldest")
            figure_of(str(len(running)), "jobs under way")
        for job in running[:4]:
            link(str(job.request.get("name") or job.kind.value), words.path("jobs", job.id))
            progress_line(job)
        for agent in found.agents[:4]:
            with ui.element("div").classes("entry"):
                link(f"Agent {agent.id}", words.path("agents", agent.id))
                badge(agent.status)
                note(
                    f"{agent.num_applied:,} predictions read, cumulative reward "
                    f"{words.percent(agent.cumulative_reward, 2, signed=True)}"
                )


def _things(found: ServiceOverview) -> None:
    with card("Readiness", anchor="ready"), ui.element("div").classes("list"):
        for name, each in found.ready.get("things", {}).items():
            with ui.element("div").classes("entry inline"):
                TextElement(tag="span", text=words.readable(name))
                badge(each["state"])
                note(words.cut(f"{each['mode']}: {each['detail']}", MOST_DETAIL))


def _verdicts(found: list[ModelCard]) -> None:
    with ui.element("div").classes("list"):
        for each in found:
            with ui.element("div").classes("entry"):
                link(each.name, words.path("models", each.id, version=each.version) + "#verdict")
                judged = verdict_of(each)
                badge(judged.verdict)
                note(judged.reason)


def _earnings(found: list[ModelCard]) -> None:
    with ui.element("div").classes("list"):
        for each in found:
            backtest = each.evaluation.backtest
            with ui.element("div").classes("entry"):
                link(each.name, words.path("models", each.id, version=each.version) + "#earned")
                if backtest is None:
                    note("nothing is traded by what it foretells")
                    continue
                earned = TextElement(tag="strong", text=words.percent(backtest.net_log_return, 2, signed=True))
                if backtest.net_log_return:
                    earned.classes("text-good" if backtest.net_log_return > 0 else "text-bad")
                note(
                    f"gross {words.percent(backtest.gross_log_return, 2, signed=True)}, costs "
                    f"{words.percent(backtest.total_cost, 2)}, Sharpe {words.number(backtest.sharpe, 2)}, "
                    f"{backtest.num_trades:,} trades over {backtest.num_days} days"
                )


def _predictions(found: list[RecordedPrediction]) -> None:
    with ui.element("div").classes("list"):
        for each in found:
            with ui.element("div").classes("entry"):
                badge(each.direction if each.status == "ok" else "abstain", "calm" if each.status == "ok" else "warn")
                link(each.model_id, words.path("models", each.model_id))
                TextElement(tag="span", text=f"{each.symbol} {each.timeframe}")
                TextElement(tag="span", text=words.percent(each.confidence, 0))
                note(f"{words.plain(each.prediction)} for {words.moment(each.as_of)}, outcome {each.outcome.state}")
