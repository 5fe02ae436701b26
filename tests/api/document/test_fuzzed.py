"""The short form of `python -m chaos.document`: schemathesis with all of its checks, without keys and with them."""

from pathlib import Path

import pytest

from chaos.document.__main__ import run
from chaos.document.service import asked

SECONDS = 40


@pytest.mark.more
@pytest.mark.timeout(900)
@pytest.mark.parametrize("has_keys", [False, True])
def test_every_check_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str], has_keys: bool) -> None:
    with asked(tmp_path / "service", has_keys=has_keys) as service:
        assert (service.key is not None) is has_keys
        code = run(service, seed=20_000, minutes=SECONDS / 60, more=("--no-shrink",))
    said = capfd.readouterr().out
    assert code == 0, said[-20_000:]
    assert "Operations:       76 selected / 77 total" in said
