"""A client that openapi-python-client makes of the document: strictly typed, and at work on a running service."""

from pathlib import Path

import pytest

from tests.generated_clients.conftest import printed_program, run
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more


def test_it_is_strictly_typed_and_trains_deploys_and_predicts(
    service: ServiceProcess, python_generator: Path, schema: Path
) -> None:
    folder = schema.parent
    said = run(
        python_generator / "openapi-python-client", "generate", "--path", schema, "--meta", "none",
        "--output-path", folder / "workbench_api", "--config", _config(folder),
    )  # fmt: skip
    assert "Warning" not in said, "nothing of the document was left out"
    (folder / "program.py").write_text(printed_program("python"), encoding="utf-8")
    run(python_generator / "mypy", "--strict", "workbench_api", "program.py", folder=folder)
    printed = run(python_generator / "python", "program.py", service.url, "no-key-is-asked-for", folder=folder)
    assert printed.startswith("champion generated_in_python 1.0.0 20")


def _config(folder: Path) -> Path:
    """No tidying up afterwards, for which the generator would look for another program."""
    path = folder / "generator.json"
    path.write_text('{"post_hooks": []}', encoding="utf-8")
    return path
