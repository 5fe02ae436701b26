"""docs/client.md does what it says: its blocks run one after the other, as they are printed, on a running service."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.service_process import ServiceProcess

pytestmark = pytest.mark.more
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "client.md"


def test_its_blocks_run_one_after_the_other(
    service: ServiceProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORKBENCH_URL", service.url)
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.S | re.M))
    assert len(blocks) >= 6
    namespace: dict[str, Any] = {}
    for block in blocks:
        lines = "\n" * (text[: block.start()].count("\n") + 1)
        exec(compile(lines + block[1], str(DOCUMENT), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "num_windows" in printed
    assert "the model does not read this feature" in printed
    assert "no model of this id" in printed
    assert "tour_linear 1.0.0" in printed
