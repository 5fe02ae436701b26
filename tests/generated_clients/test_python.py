"""A client that openapi-python-client makes of the document: strictly typed, and at work on a running service."""

import json
import re
from pathlib import Path

import pytest

from tests.generated_clients.conftest import printed_program, run
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more


def test_it_is_strictly_typed_and_trains_deploys_and_predicts(
    service: ServiceProcess, python_generator: Path, schema: Path
) -> None:
    folder = schema.parent
    _leave_out_the_protocol(schema)
    said = run(
        python_generator / "openapi-python-client", "generate", "--path", schema, "--meta", "none",
        "--output-path", folder / "workbench_api", "--config", _config(folder),
    )  # fmt: skip
    assert "Warning" not in said, "nothing of the document was left out"
    (folder / "program.py").write_text(printed_program("python"), encoding="utf-8")
    run(python_generator / "mypy", "--strict", "workbench_api", "program.py", folder=folder)
    printed = run(python_generator / "python", "program.py", service.url, "no-key-is-asked-for", folder=folder)
    assert printed.startswith("champion generated_in_python 1.0.0 20")


def _leave_out_the_protocol(schema: Path) -> None:
    """The Open Inference Protocol has clients of its own; this generator's code for bytes beside JSON is not typed."""
    document = json.loads(schema.read_text(encoding="utf-8"))
    document["paths"] = {name: item for name, item in document["paths"].items() if not name.startswith("/v2")}
    known = document["components"]["schemas"]
    needed: set[str] = set()
    named = _named(document["paths"])
    while named - needed:
        needed |= named
        named = {each for name in needed for each in _named(known[name])}
    document["components"]["schemas"] = {name: known[name] for name in known if name in needed}
    schema.write_text(json.dumps(document), encoding="utf-8")


def _named(part: object) -> set[str]:
    return set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(part)))


def _config(folder: Path) -> Path:
    """No tidying up afterwards, for which the generator would look for another program."""
    path = folder / "generator.json"
    path.write_text('{"post_hooks": []}', encoding="utf-8")
    return path
