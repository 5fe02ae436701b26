"""`agents`: those who act on the prediction stream, and learn from it."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common_lib.command_line import CommandLine, UsageMistake
from ml_workbench_client.cli import opening, tables

if TYPE_CHECKING:
    from ml_workbench_service.contracts.agents import Agent

agents = typer.Typer(no_args_is_help=True)
app = typer.Typer()
app.add_typer(agents, name="agents", help="Agents on the prediction stream.", rich_help_panel="Live")
OF_A_STATE = ("forecast", "width", "held", "best", "visits", "value_short", "value_flat", "value_long")
OF_A_DECISION = (
    "as_of", "symbol", "action", "size", "mode", "explored", "reward", "cost", "cumulative_reward",
)  # fmt: skip
"""What a terminal shows of each."""
AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="An agent's id, such as default.")]


@agents.command("list")
def list_(line: CommandLine) -> None:
    """List the agents."""
    with opening.workbench(line) as bench:
        found = bench.agents().all()
    line.screen.rows(
        "agents",
        found,
        {
            "id": "id",
            "status": "status",
            "mode": "mode",
            "family": "family",
            "applied": "num_applied",
            "reward": "cumulative_reward",
            "model": lambda each: each.model_id or "every live one",
        },
        nothing="no agents; `ml-workbench agents create` starts one",
    )


@agents.command("show")
def show(line: CommandLine, agent: AgentId) -> None:
    """Show an agent: what it did, earned and holds."""
    with opening.workbench(line) as bench:
        _answer(line, bench.agent(agent).state)


@agents.command("q-table")
def q_table(line: CommandLine, agent: AgentId, output: tables.Output = None) -> None:
    """What an agent has learnt: the value of each action in each state; those learnt from most come first."""
    tables.check_suffix(output)
    with opening.workbench(line) as bench:
        found = bench.agent(agent).q_table()
    tables.put_out(line, found, output, columns=OF_A_STATE, most=("visits",))


@agents.command("decisions")
def decisions(
    line: CommandLine,
    agent: AgentId,
    symbol: Annotated[str | None, typer.Option(help="Of this symbol alone, such as EUR/USD.")] = None,
    start: Annotated[str | None, typer.Option(help="Of bars known from then on, 2025-02-03T00:00:00Z.")] = None,
    end: Annotated[str | None, typer.Option(help="Of bars known until then.")] = None,
    output: tables.Output = None,
) -> None:
    """What an agent decided, newest first, as far back as the stream still goes."""
    tables.check_suffix(output)
    with opening.workbench(line) as bench:
        found = bench.agent(agent).decisions(symbol=symbol, from_=start, to=end)
    tables.put_out(line, found, output, columns=OF_A_DECISION, most=("decided_at", "as_of"))


@agents.command("create")
def create(
    line: CommandLine,
    agent: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", help="Its id; default: made from its model.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Acts on this model alone.")] = None,
    family: Annotated[str | None, typer.Option(help="q_learning, linear_policy, dqn, ppo or signal.")] = None,
    mode: Annotated[str | None, typer.Option(help="learn, frozen or shadow.")] = None,
    risk_aversion: Annotated[float | None, typer.Option(help="Weight of half the squared return.")] = None,
    copy_of: Annotated[str | None, typer.Option(help="Begin with what this agent has learnt.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A hyper-parameter, learning_rate=0.1.")] = None,
) -> None:
    """Start one more agent, with a consumer group of its own."""
    fields: dict[str, Any] = opening.given(
        id=agent,
        model_id=model,
        family=family,
        mode=mode,
        reward=None if risk_aversion is None else {"risk_aversion": risk_aversion},
        copy_of=copy_of,
        hyperparameters=opening.settings(set_) or None,
    )
    with opening.workbench(line) as bench:
        _answer(line, bench.create_agent(**fields).state)


@agents.command("start")
def start(line: CommandLine, agent: AgentId) -> None:
    """Start a stopped agent again, with what it knows."""
    with opening.workbench(line) as bench:
        _answer(line, bench.agent(agent).start())


@agents.command("stop")
def stop(line: CommandLine, agent: AgentId) -> None:
    """Stop an agent; what it has learnt stays."""
    with opening.workbench(line) as bench:
        _answer(line, bench.agent(agent).stop())


@agents.command("reset")
def reset(
    line: CommandLine, agent: AgentId, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Make an agent forget what it has learnt and holds."""
    if not yes:
        if not sys.stdin.isatty() or line.as_json:
            raise UsageMistake(f"this makes {agent} forget everything; confirm it with --yes")
        if not typer.confirm(f"This makes {agent} forget everything. Go on?", err=True):
            raise UsageMistake(f"{agent} has forgotten nothing")
    with opening.workbench(line) as bench:
        _answer(line, bench.agent(agent).reset())


@agents.command("delete")
def delete(line: CommandLine, agent: AgentId) -> None:
    """Remove a stopped agent and its checkpoints."""
    with opening.workbench(line) as bench:
        bench.agent(agent).delete()
    line.screen.thing({"id": agent, "deleted": True}, f"{agent} is deleted", {})


def _answer(line: CommandLine, agent: "Agent") -> None:
    line.screen.thing(
        agent,
        f"agent {agent.id}: {agent.status}",
        {
            "family": f"{agent.family}, {agent.mode}",
            "model": agent.model_id or "every live one",
            "applied": agent.num_applied,
            "actions": agent.num_actions,
            "late": agent.num_late or None,
            "reward": agent.cumulative_reward,
            "cost": agent.cumulative_cost,
            "exploration": agent.exploration_rate,
            "positions": agent.positions,
            "last entry": agent.last_applied_id,
            "updated": agent.updated_at,
        },
    )
