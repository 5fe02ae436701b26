"""One really trained forecast for all tests of figures."""

import pytest

from ml_workbench_figures import FigureInputs
from tests.figures.trained import trained_forecast


@pytest.fixture(scope="package")
def forecast(tmp_path_factory: pytest.TempPathFactory) -> FigureInputs:
    """Its card, rows and curves."""
    return trained_forecast(tmp_path_factory.mktemp("forecast"))
