"""Redocly's and Spectral's recommended rules find no error in the OpenAPI document."""

import json
from pathlib import Path

import pytest

from tests.generated_clients.conftest import run

pytestmark = pytest.mark.more


def test_redocly_finds_no_error(npm_tools: Path, schema: Path) -> None:
    rules = schema.with_name("redocly.yaml")
    rules.write_text("extends: [recommended]\n", encoding="utf-8")
    run(npm_tools / ".bin" / "redocly", "lint", "--config", rules, "--format", "stylish", schema)


def test_spectral_finds_no_error(npm_tools: Path, schema: Path) -> None:
    rules = schema.with_name("spectral.yaml")
    rules.write_text('extends: ["spectral:oas"]\n', encoding="utf-8")
    run(npm_tools / ".bin" / "spectral", "lint", "--ruleset", rules, "--fail-severity", "error", schema)


def test_the_linters_would_have_said_so(npm_tools: Path, schema: Path) -> None:
    document = json.loads(schema.read_bytes())
    paths = document["paths"]
    paths["/api/v1/models"]["get"]["operationId"] = paths["/api/v1/jobs"]["get"]["operationId"]
    schema.write_text(json.dumps(document), encoding="utf-8")
    for check in (test_redocly_finds_no_error, test_spectral_finds_no_error):
        with pytest.raises(AssertionError, match=r"(?i)operation-?id"):
            check(npm_tools, schema)
