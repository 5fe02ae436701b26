"""Types that openapi-typescript makes of the document: `tsc --strict` is content, and node trains and predicts."""

from pathlib import Path

import pytest

from tests.generated_clients.conftest import printed_program, run
from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more
STRICT = (
    "--strict", "--noUncheckedIndexedAccess", "--module", "nodenext", "--target", "es2022", "--types", "node",
)  # fmt: skip


def test_it_is_strictly_typed_and_trains_deploys_and_predicts(
    service: ServiceProcess, npm_tools: Path, schema: Path
) -> None:
    folder = schema.parent
    (folder / "node_modules").symlink_to(npm_tools)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    programs = folder / "node_modules" / ".bin"
    types = folder / "workbench.d.ts"
    run(programs / "openapi-typescript", schema, "--output", types, "--default-non-nullable", "false")
    (folder / "program.ts").write_text(printed_program("typescript"), encoding="utf-8")
    run(programs / "tsc", *STRICT, "program.ts", folder=folder)
    printed = run("node", "program.js", service.url, "no-key-is-asked-for", folder=folder)
    assert printed.startswith("champion generated_in_typescript 1.0.0 20")
