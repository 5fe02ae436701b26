"""Opening a client for a command, and reading what people write: lists, settings, `MODEL@VERSION`, moments."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common_lib.command_line import CommandLine, UsageMistake

if TYPE_CHECKING:
    from ml_workbench_client.model import Model
    from ml_workbench_client.plans import Sync
    from ml_workbench_client.workbench import Workbench

NUM_RETRIES = 2
"""Fewer than a script's: somebody is waiting for the prompt. A stream of events is taken up again as ever."""


@contextmanager
def workbench(line: CommandLine) -> Iterator["Workbench"]:
    """A client of the service that the command is about."""
    from ml_workbench_client.sending import Patience
    from ml_workbench_client.workbench import Workbench

    with Workbench(line.url, line.api_key, patience=Patience(num_retries=NUM_RETRIES)) as opened:
        yield opened


def model_of(bench: "Workbench", name: str) -> "Model[Sync]":
    """A model, or one version of it: `small`, `small@1.0.0`."""
    model_id, _, version = name.partition("@")
    return bench.model(model_id, version or None)


def version_of(bench: "Workbench", name: str) -> "Model[Sync]":
    """One version by its name `small@1.0.0`; without a version it is refused."""
    model = model_of(bench, name)
    if model.version is None:
        raise UsageMistake(
            f"this is about one version; name it as {name}@1.0.0 (`ml-workbench models versions {name}`)"
        )
    return model


def listed(values: Sequence[str] | None) -> list[str]:
    """What was written with commas, or with the option several times, or both; commas in brackets divide nothing."""
    from ml_workbench_service.contracts.feature_names import split_features

    return [part for value in values or () for part in split_features(value) if part]


def settings(values: Sequence[str] | None) -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it is that (`64`, `0.1`, `true`, `[1, 2]`), else text."""
    found: dict[str, Any] = {}
    for each in values or ():
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise UsageMistake(f"`{each}` is no setting; write name=value, such as lstm_units=64")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def given(**fields: Any) -> dict[str, Any]:
    """The fields that somebody wrote, for a request: None and empty lists stay away."""
    return {name: value for name, value in fields.items() if value is not None and value != []}
