"""What all contracts share."""

import pytest
from pydantic import ValidationError

from ml_workbench_service.contracts.contract import constructed
from ml_workbench_service.contracts.market import Costs
from ml_workbench_service.contracts.prediction import PredictionRecord
from tests.prediction_records import prediction_record


def test_a_constructed_contract_is_one_that_was_validated() -> None:
    record = prediction_record()
    same = constructed(PredictionRecord, {name: getattr(record, name) for name in PredictionRecord.model_fields})
    assert same == record
    assert same.model_dump_json() == record.model_dump_json()
    assert same.model_fields_set == set(PredictionRecord.model_fields)
    assert same.model_copy(update={"price": 2.0}).price == 2.0


def test_a_constructed_contract_cannot_be_changed() -> None:
    costs = constructed(Costs, dict.fromkeys(Costs.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        costs.spread_pips = 1.0  # type: ignore[misc]
