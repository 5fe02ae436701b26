"""Deployments: an append-only history per model; the last live line is what is served.

pending → live → superseded | rolled_back | undeployed
    └→ failed
"""

import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from ml_workbench_service.contracts.asked import Asked
from ml_workbench_service.contracts.contract import Contract, Finite, Semver, UtcDatetime
from ml_workbench_service.contracts.evaluation import Verdict

DeploymentTarget = Literal["strategy_engine", "ml_integration", "analysis_engine", "local"]
MonitoringLevel = Literal["low", "medium", "high"]
DeploymentStatus = Literal["pending", "live", "failed", "superseded", "rolled_back", "undeployed"]
"""`undeployed`: it was live and nothing followed it; of a model whose last line says so, nothing is served."""
MONITORED_SHARE: Mapping[MonitoringLevel, float] = {"low": 0.01, "medium": 0.1, "high": 1.0}
"""The share of predictions that a level samples."""
GateName = Literal["digest", "smoke_prediction", "leakage_certificate", "skill"]
SAFETY_GATES: frozenset[str] = frozenset({"digest", "smoke_prediction", "leakage_certificate"})
"""Enforced whatever anybody says; `force` does not pass them."""


class DeployRequest(Asked):
    """The original specification's body and what guards it."""

    version: Semver
    deployment_target: DeploymentTarget
    scaling_factor: Annotated[Finite, Field(ge=0, le=1, description="Multiplies the signal's size.")] = 1.0
    monitoring_level: MonitoringLevel = "low"
    expected_current: Semver | None = Field(
        default=None, description="Deploy only if this version is live now; else 409."
    )
    gates: dict[GateName, bool] | None = Field(
        default=None,
        description="Which gates are enforced. `digest`, `smoke_prediction` and `leakage_certificate` always are; "
        "`skill` warns unless it is enforced here or by the setting SKILL_GATE.",
    )
    declared_columns: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Columns whose owner's word the deployer takes: an enforced gate `skill` passes `proof: declared` "
        "only where each of them is named here.",
    )
    accepted_verdict: Literal["implausible"] | None = Field(
        default=None, description="Deploys a model whose figures are too good to be true; `force` alone does not."
    )
    reason: Annotated[str, Field(max_length=1000)] = ""
    force: bool = Field(
        default=False,
        description="Deploys though the enforced gate `skill` fails, but for the verdict `implausible`; no other gate.",
    )


class GateResult(Contract):
    """One gate's finding."""

    gate: str
    value: str
    limit: str
    passed: bool
    enforced: bool


class Deployment(Contract):
    """One deployment as it stands now; every change of it is one appended line."""

    id: str
    model_id: str
    version: str
    deployment_target: DeploymentTarget
    status: DeploymentStatus
    previous_version: str | None
    gate_results: tuple[GateResult, ...] = ()
    warnings: tuple[str, ...] = ()
    digest: str = ""
    data_source: str | None = Field(
        default=None,
        description="Of the bars that the version was trained on, as on its card; null on older ones.",
    )
    scaling_factor: Finite = 1.0
    monitoring_level: MonitoringLevel = "low"
    reason: str = ""
    error: str | None = None
    created_at: UtcDatetime
    live_at: UtcDatetime | None = None
    ended_at: UtcDatetime | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None
    correlation_id: str = ""
    closing_as_of: UtcDatetime | None = Field(
        default=None, description="The moment at which agents were told that it ended; null before, and of others."
    )
    closing_sent: bool = Field(
        default=False, description="Of an undeployed one: whether its closing records are in the prediction queue."
    )

    @property
    def owes_closing(self) -> bool:
        """Whether agents may still hold positions on its word: it was undeployed, and they were not told yet."""
        return self.status == "undeployed" and not self.closing_sent

    def warnings_today(self, verdict: Verdict) -> tuple[str, ...]:
        """What it is live with, where its version's verdict reads so by the rules of today.

        A deployment of earlier rules may have gone live without a warning; what is live stays live.
        """
        has_passed_so = any(
            gate.gate == "skill" and gate.passed and gate.value.startswith(f"{verdict}:") for gate in self.gate_results
        )
        named = () if has_passed_so else verdict_warnings(verdict)
        return (*self.warnings, *(each for each in named if each not in self.warnings))


def verdict_warnings(verdict: Verdict) -> tuple[str, ...]:
    """What deploying a version of this verdict warns of, by its name; nothing of `skill`."""
    return () if verdict == "skill" else (f"verdict_{verdict}",)


class Undeployment(Contract):
    """`POST /models/{id}/undeploy`: nothing of the model is live any more."""

    model_id: str
    deployment: Deployment | None = Field(description="What was live last; null where nothing ever was.")
    warnings: tuple[str, ...] = Field(
        default=(),
        description="`closing_records_pending`: the queue is away or full, and agents hear of it once it is not; "
        "`strategy_engine_not_configured`: the deployment's target could not be told.",
    )


class DeploymentList(Contract):
    """`GET /deployments`, newest first."""

    deployments: tuple[Deployment, ...]
    next_cursor: str | None = None


def is_monitored(prediction_id: str, level: MonitoringLevel) -> bool:
    """Whether the level's sample has this prediction: by a hash of its id, so that anybody may find out again."""
    share = MONITORED_SHARE[level]
    return share >= 1.0 or zlib.crc32(prediction_id.encode()) < share * 2**32
