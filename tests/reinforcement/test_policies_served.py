"""A policy from a training request to its answers: by the same workflow and the same predict path as every model."""

from dataclasses import replace
from pathlib import Path

import pytest

from ml_workbench_service.contracts.models import ModelCard
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving.history import newest_question, read_history, replay_questions
from ml_workbench_service.serving.predict import Circumstances, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from tests.trained_models import injected_bars, loaded, open_bench, train_model

LIVE = Circumstances(role="champion")


@pytest.fixture(scope="module")
def trader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workbench, ModelCard]:
    folder = tmp_path_factory.mktemp("trader")
    bench = open_bench(folder)
    injected_bars(2500, seed=4, r2=0.3).write(folder / "bars", "EUR/USD")
    card = train_model(
        bench, "trader", checkpoint=folder / "checkpoint", model_type="reinforcement_learning", target=None,
        family="q_learning", timeframe="1h", features=["signal", "sma_20"], symbols=["EUR/USD"],
        hyperparameters={"lookback": 8, "bins": 6, "epochs": 20},
    )  # fmt: skip
    return bench, card


def test_its_card_says_what_the_test_part_paid(trader: tuple[Workbench, ModelCard]) -> None:
    _, card = trader
    assert (card.type, card.family, card.target, card.targets) == ("reinforcement_learning", "q_learning", None, ())
    assert card.outputs == ("q_short", "q_flat", "q_long")
    assert card.metrics["net_log_return"] > 0.02
    assert card.metrics["net_log_return"] > card.metrics["buy_and_hold_net_log_return"]
    assert card.metrics["sanity_oracle_share"] > 0.5
    assert card.findings["sanity"]["num_seeds"] == 20
    assert card.findings["table"]["num_states"] == 108
    assert card.quantization.accepted is False


def test_its_answers_name_an_action_and_read_the_position(trader: tuple[Workbench, ModelCard]) -> None:
    bench, card = trader
    model = loaded(bench, card)
    model.smoke()
    (table,) = bench.feature_store.fetch(
        ["EUR/USD"], "1h", start_ms=0, end_ms=4_102_444_800_000, features=["signal", "sma_20", "close"]
    )
    question = replace(newest_question(model, table, as_of_ms=None), clock=False)
    record = answer(model, question, LIVE)
    assert record.label in ("short", "flat", "long")
    assert record.prediction == {"short": -1.0, "flat": 0.0, "long": 1.0}[record.label]
    assert record.direction == {"short": "sell", "flat": "hold", "long": "buy"}[record.label]
    assert record.confidence is None
    assert set(record.outputs) == set(card.outputs)
    assert max(record.outputs, key=lambda name: record.outputs[name] or 0.0) == f"q_{record.label}"
    questions = [each for _, each in replay_questions(read_history(model, table), from_ms=0, job_id="r") if each]
    some = [replace(each, position=number % 3 - 1.0) for number, each in enumerate(questions[-300:])]
    records = answer_many(model, [prepare(model, each) for each in some], LIVE)
    assert [each.outputs for each in records] == [answer(model, each, LIVE).outputs for each in some]
    assert {each.label for each in records if each.status == "ok"} == {"short", "flat", "long"}
    assert all(each.metadata.strength == each.prediction for each in records), "what an agent reads of a position"
    flat = [answer(model, replace(each, position=0.0), LIVE) for each in some]
    for number, (one, two) in enumerate(zip(records, flat, strict=True)):
        assert (one.outputs != two.outputs) == (number % 3 != 1 and one.status == "ok")


def test_an_abstaining_policy_leans_nowhere(trader: tuple[Workbench, ModelCard]) -> None:
    bench, card = trader
    model = loaded(bench, card)
    (table,) = bench.feature_store.fetch(
        ["EUR/USD"], "1h", start_ms=0, end_ms=4_102_444_800_000, features=["signal", "sma_20", "close"]
    )
    question = replace(newest_question(model, table, as_of_ms=None), clock=False)
    wild = question.x_TF.copy()
    wild[-1, 0] = 1e6
    record = answer(model, replace(question, x_TF=wild), LIVE)
    assert record.abstain_reasons == ("novel_input",)
    assert (record.prediction, record.label, record.metadata.strength) == (None, None, None)


def test_the_bundle_holds_the_table_and_no_code(trader: tuple[Workbench, ModelCard]) -> None:
    bench, card = trader
    files = {each.name for each in Path(bench.registry.folder(card.id, card.version)).iterdir()}
    assert {"model.onnx", "weights.safetensors", "network.json", "recipe.json", "card.json"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".zip", ".pt"))]
