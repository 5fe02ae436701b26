"""Evidence of a run, read from its producers' histories, the server's log and the agents' checkpoints."""

from collections.abc import Mapping

from pydantic import ValidationError

from ml_workbench_service.agents.checkpoint import Checkpoint
from ml_workbench_service.contracts.entries import unflatten
from ml_workbench_service.contracts.prediction import PredictionRecord
from ml_workbench_service.resilience.checker import AgentEnd, Evidence
from ml_workbench_service.resilience.history import ServerHistory
from ml_workbench_service.resilience.rig import Rig
from ml_workbench_service.resilience.synthetic import number_of


def gather(rig: Rig) -> Evidence:
    """The evidence of a run whose rig is quiet and not closed yet."""

    def record_of(identifier: str) -> PredictionRecord:
        number = number_of(identifier)
        if number is None or number >= rig.num_records:
            raise KeyError(identifier)
        return rig.records.record(number)

    def is_as_offered(identifier: str, fields: Mapping[bytes, bytes]) -> bool:
        if number_of(identifier) is None:
            return identifier in rig.poison
        try:
            return unflatten(PredictionRecord, fields) == record_of(identifier)
        except (KeyError, ValidationError):
            return False

    agents = [
        AgentEnd(each.agent_id, rig.group_of(each), rig.begun[folder], Checkpoint.load(folder))
        for folder, each in {rig.state_of(each): each for each in rig.agents}.items()
    ]
    return Evidence(
        record_of=record_of,
        symbol_of=rig.records.symbol_of,
        producers=[producer.history() for producer in rig.producers],
        server=ServerHistory.read(rig.redis.folder, [agent.group for agent in agents], is_as_offered=is_as_offered),
        agents=agents,
        poison=frozenset(rig.poison),
        samples=rig.samples,
        last=rig.last,
    )
