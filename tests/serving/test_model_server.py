"""Which version answers: the live one, the newest, or the one asked for; loaded once, verified, swapped at a line."""

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common_lib.exceptions import (
    BundleDamagedError,
    BundleTamperedError,
    ModelNotFoundError,
    PredictionError,
    VersionNotFoundError,
)
from ml_workbench_service.accelerators.processor import processor_features
from ml_workbench_service.api.health import inference
from ml_workbench_service.contracts.contract import utc_now
from ml_workbench_service.contracts.deployment import Deployment
from ml_workbench_service.contracts.market import FeatureTable, Floats32
from ml_workbench_service.contracts.prediction import RawPrediction
from ml_workbench_service.integrations.deployment_history import DeploymentHistory
from ml_workbench_service.integrations.model_registry import FolderModelRegistry
from ml_workbench_service.learning.bundle.export import quantize
from ml_workbench_service.learning.bundle.manifest import INT8_FILE, write_manifest
from ml_workbench_service.learning.bundle.quantization import CalibrationWindows
from ml_workbench_service.resources import Workbench
from ml_workbench_service.serving import model_server as serving_module
from ml_workbench_service.serving.history import SymbolHistory, read_history
from ml_workbench_service.serving.model import ServedModel, load_model
from ml_workbench_service.serving.model_server import Chosen, ModelServer
from ml_workbench_service.serving.predict import Circumstances, answer, prepare
from ml_workbench_service.serving.runs.answering import answer_many
from ml_workbench_service.serving.runs.questions import QuestionRun

pytestmark = pytest.mark.processor


class Shelf:
    """A copy of the shared registry that a test may deploy in and damage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.history = DeploymentHistory(root)
        self.registry = FolderModelRegistry(root, live_version=self.history.live_version)
        self.serving = ModelServer(self.registry, live=self.history.live)

    def deploy(self, version: str, **changes: Any) -> None:
        """Appends the lines that make a version live."""
        lines = []
        live = self.history.live("small")
        if live is not None:
            lines.append(live.model_copy(update={"status": "superseded"}))
        lines.append(
            Deployment(
                id=f"d-{version}-{len(self.history.of('small'))}",
                model_id="small",
                version=version,
                deployment_target="local",
                status="live",
                previous_version=None,
                created_at=utc_now(),
                **changes,
            )
        )
        self.history.append(*lines)


@pytest.fixture
def shelf(bench: Workbench, tmp_path: Path) -> Iterator[Shelf]:
    shutil.copytree(bench.registry.root, tmp_path / "registry")
    shelf = Shelf(tmp_path / "registry")
    yield shelf
    shelf.serving.close()


async def test_nothing_deployed_the_newest_version_answers_as_a_candidate(shelf: Shelf) -> None:
    chosen = await shelf.serving.choose("small", None)
    assert chosen.model.card.version == "1.1.0"
    circumstances = chosen.circumstances("c")
    assert (circumstances.role, circumstances.scaling_factor, circumstances.deployment_id) == ("candidate", 1.0, None)


async def test_the_live_version_answers_as_champion_with_its_scaling_factor(shelf: Shelf) -> None:
    shelf.deploy("1.0.0", scaling_factor=0.25)
    chosen = await shelf.serving.choose("small", None)
    assert chosen.model.card.version == "1.0.0"
    circumstances = chosen.circumstances("c")
    assert (circumstances.role, circumstances.scaling_factor) == ("champion", 0.25)
    assert circumstances.deployment_id == "d-1.0.0-0"
    named = await shelf.serving.choose("small", "1.0.0")
    assert named.circumstances("c").role == "champion"
    other = await shelf.serving.choose("small", "1.1.0")
    assert other.circumstances("c").role == "candidate"
    assert other.circumstances("c").scaling_factor == 1.0


async def test_a_bundle_that_is_not_the_deployed_one_answers_nothing(shelf: Shelf) -> None:
    shelf.deploy("1.0.0", digest="sha256:" + "0" * 64)
    with pytest.raises(BundleTamperedError, match="not what was deployed"):
        await shelf.serving.choose("small", None)


async def test_a_swap_is_seen_at_the_next_question(shelf: Shelf, history: SymbolHistory) -> None:
    question = history.question(500)
    found = []
    for version in ("1.0.0", "1.1.0", "1.0.0"):
        shelf.deploy(version)
        chosen = await shelf.serving.choose("small", None)
        record = await shelf.serving.answer(chosen, question, "c")
        assert record.version == version
        found.append(record.prediction)
    assert found[0] == found[2] != found[1]
    assert shelf.serving.num_loaded == 2


async def test_while_versions_swap_each_record_holds_one_versions_answer(shelf: Shelf, history: SymbolHistory) -> None:
    question = history.question(500)
    by_version = {}
    for version in ("1.0.0", "1.1.0"):
        chosen = await shelf.serving.choose("small", version)
        by_version[version] = (await shelf.serving.answer(chosen, question, "c")).prediction
    shelf.deploy("1.0.0")

    swapped = asyncio.Event()

    async def ask() -> list[tuple[str, float | None, str | None]]:
        seen = []
        while not swapped.is_set() or len(seen) < 60:  # however slowly the other thread gets on
            record = await shelf.serving.answer(await shelf.serving.choose("small", None), question, "c")
            seen.append((record.version, record.prediction, record.metadata.deployment_id))
        return seen

    async def swap() -> None:
        for number in range(20):
            await asyncio.to_thread(shelf.deploy, ("1.1.0", "1.0.0")[number % 2])
        swapped.set()

    *answers, _ = await asyncio.gather(ask(), ask(), ask(), swap())
    records = [each for seen in answers for each in seen]
    assert len(records) >= 180
    assert {version for version, _, _ in records} == {"1.0.0", "1.1.0"}
    for version, prediction, deployment_id in records:
        assert prediction == by_version[version]
        assert deployment_id is not None
        assert deployment_id.startswith(f"d-{version}-")


async def test_unknown_models_and_versions_are_not_found(shelf: Shelf) -> None:
    with pytest.raises(ModelNotFoundError):
        await shelf.serving.choose("smal", None)
    with pytest.raises(VersionNotFoundError):
        await shelf.serving.choose("small", "9.9.9")


@pytest.mark.parametrize("file", ["model.onnx", "recipe.json", "card.json"])
async def test_a_changed_file_is_never_served(file: str, shelf: Shelf) -> None:
    path = shelf.root / "small" / "1.0.0" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleDamagedError):
        await shelf.serving.choose("small", "1.0.0")
    assert (await shelf.serving.choose("small", "1.1.0")).model.card.version == "1.1.0"


async def test_a_version_is_loaded_once_however_many_ask_at_the_same_time(shelf: Shelf) -> None:
    chosen = await asyncio.gather(*(shelf.serving.choose("small", "1.0.0") for _ in range(12)))
    assert len({id(each.model) for each in chosen}) == 1
    assert shelf.serving.num_loaded == 1


async def test_the_least_recently_used_model_makes_room(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "MOST_LOADED", 2)
    for number in (3, 4):
        copy_bundle(shelf.root / "small" / "1.0.0", f"1.{number}.0")
    first = await shelf.serving.choose("small", "1.0.0")
    await shelf.serving.choose("small", "1.1.0")
    await shelf.serving.choose("small", "1.0.0")
    await shelf.serving.choose("small", "1.3.0")
    assert shelf.serving.num_loaded == 2
    assert (await shelf.serving.choose("small", "1.0.0")).model is first.model
    await shelf.serving.choose("small", "1.4.0")
    await shelf.serving.choose("small", "1.3.0")
    assert (await shelf.serving.choose("small", "1.0.0")).model is not first.model


@pytest.mark.parametrize("limit", ["MOST_LOADED", "MOST_LOADED_BYTES"])
async def test_a_live_version_stays_whoever_else_is_asked_for(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(serving_module, limit, 1)
    for number in (3, 4):
        copy_bundle(shelf.root / "small" / "1.0.0", f"1.{number}.0")
    shelf.deploy("1.0.0")
    live = await shelf.serving.choose("small", None)
    others = [(await shelf.serving.choose("small", version)).model for version in ("1.1.0", "1.3.0", "1.4.0")]
    assert (await shelf.serving.choose("small", None)).model is live.model
    assert (await shelf.serving.choose("small", "1.4.0")).model is others[2], "what came last has room"
    assert shelf.serving.num_loaded == 2
    shelf.deploy("1.4.0")
    await shelf.serving.choose("small", "1.1.0")
    assert (await shelf.serving.choose("small", None)).model is others[2]
    assert (await shelf.serving.choose("small", "1.0.0")).model is not live.model, "it is live no more, and has left"


def copy_bundle(source: Path, version: str, change: Callable[[Path], None] = lambda folder: None, **card: Any) -> Path:
    """Publishes a copy of a bundle beside it, its card changed."""
    folder = source.parent / version
    shutil.copytree(source, folder)
    change(folder)
    plain = json.loads((folder / "card.json").read_text()) | {"version": version} | card
    (folder / "card.json").write_text(json.dumps(plain))
    write_manifest(folder)
    return folder


class Spy:
    """A predictor that notes on which thread it runs, and how many windows; it fails where a window's rows say so."""

    def __init__(self, inner: Any, *, poison: Floats32 | None = None) -> None:
        self._inner = inner
        self._poison = poison
        self.threads: set[str] = set()
        self.runs: list[int] = []

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """The inner network's answer."""
        self.threads.add(threading.current_thread().name)
        self.runs.append(len(rows_NTF))
        if self._poison is not None and any(np.array_equal(rows_TF, self._poison) for rows_TF in rows_NTF):
            raise PredictionError("this window is poison")
        answer: RawPrediction = self._inner.predict(rows_NTF, positions_N)
        return answer


async def test_questions_that_come_together_share_a_run_and_are_answered_as_alone(
    shelf: Shelf, model: ServedModel, history: SymbolHistory
) -> None:
    spy = Spy(model.float32)
    chosen = Chosen(replace(model, float32=spy, single=spy), None)
    questions = [history.question(row) for row in range(500, 520)]
    alone = [answer(model, each, Circumstances(role="candidate", correlation_id="c")) for each in questions]
    records = await asyncio.gather(*(shelf.serving.answer(chosen, each, "c") for each in questions))
    prepared = [prepare(model, each) for each in questions]
    together = (await shelf.serving.answer_many(chosen, QuestionRun.of(prepared), "c")).records()
    assert [each.prediction for each in records] == [each.prediction for each in together]
    assert spy.runs == [20, 20]
    assert spy.threads <= {"inference_0", threading.current_thread().name}
    timed = {"timestamp"}
    assert [each.model_dump(exclude=timed) for each in records] == [each.model_dump(exclude=timed) for each in alone]
    assert {each.metadata.correlation_id for each in together} == {"c"}


async def test_a_window_that_cannot_be_answered_fails_alone(
    shelf: Shelf, model: ServedModel, history: SymbolHistory
) -> None:
    questions = [history.question(row) for row in range(500, 510)]
    poison = prepare(model, questions[3]).rows_TF
    spy = Spy(model.float32, poison=poison)
    chosen = Chosen(replace(model, float32=spy, single=spy), None)
    asked = (shelf.serving.answer(chosen, each, "c") for each in questions)
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [number for number, each in enumerate(found) if isinstance(each, PredictionError)] == [3]
    assert spy.runs == [10] + [1] * 10


async def test_windows_of_different_lengths_and_unknown_symbols_do_not_share_a_run(
    shelf: Shelf, model: ServedModel, history: SymbolHistory
) -> None:
    spy = Spy(model.float32)
    chosen = Chosen(replace(model, float32=spy, single=spy), None)
    whole = [history.question(row) for row in range(500, 503)]
    short = [replace(each, x_TF=each.x_TF[-4:]) for each in whole[:2]]
    unknown = replace(whole[0], symbol="AUD/NZD")
    asked = [*whole, unknown, *short]
    found = await asyncio.gather(*(shelf.serving.answer(chosen, each, "c") for each in asked))
    assert sorted(spy.runs) == [2, 3]
    assert [each.status for each in found if each.symbol == "AUD/NZD"] == ["abstain"]
    assert all("short_window" in each.warnings for each in found[-2:])


async def test_int8_answers_every_window_alone_however_many_ask(shelf: Shelf, history: SymbolHistory) -> None:
    folder = copy_bundle(shelf.root / "small" / "1.0.0", "1.5.0", change=quantize, precision="int8")
    served = load_model(folder, shelf.registry.card("small", "1.5.0"))
    spy = Spy(served.single)
    chosen = Chosen(replace(served, single=spy), None)
    questions = [history.question(row) for row in range(500, 510)]
    found = await asyncio.gather(*(shelf.serving.answer(chosen, each, "c") for each in questions))
    assert spy.runs == [1] * 10
    alone = [answer(served, each, Circumstances(role="candidate")) for each in questions]
    assert [each.prediction for each in found] == [each.prediction for each in alone]


def test_int8_answers_single_windows_and_float32_answers_many(shelf: Shelf, history: SymbolHistory) -> None:
    folder = copy_bundle(shelf.root / "small" / "1.0.0", "1.5.0", change=quantize, precision="int8")
    served = load_model(folder, shelf.registry.card("small", "1.5.0"))
    question = history.question(500)
    live = Circumstances(role="candidate")
    single, (many,) = answer(served, question, live), answer_many(served, [prepare(served, question)], live)
    assert (single.metadata.precision, many.metadata.precision) == ("int8", "fp32")
    rows = served.scaler.rows("EUR/USD", question.x_TF)[None]
    (scale,) = served.scaler.symbols["EUR/USD"].label_scale_K
    assert single.prediction == float(served.single.predict(rows).outputs_NK[0, 0]) * float(scale)
    assert many.prediction == float(served.float32.predict(rows).outputs_NK[0, 0]) * float(scale)
    assert single.prediction != many.prediction


HERE, ELSEWHERE = processor_features(), ["avx2", "of_another_machine"]


def bundle_of_int8(
    shelf: Shelf, model: ServedModel, tables: dict[str, FeatureTable], *, processor: Sequence[str], keeps: bool = True,
    source: str = "1.0.0",
) -> Path:  # fmt: skip
    """Version 1.7.0: version 1.0.0 with int8 of `source`, measured on that processor, with windows kept or not."""
    other = shelf.root / "small" / source

    def change(folder: Path) -> None:
        quantize(folder)
        if source != "1.0.0":
            shutil.copytree(other, folder.parent / "other")
            quantize(folder.parent / "other")
            shutil.move(folder.parent / "other" / INT8_FILE, folder / INT8_FILE)
            shutil.rmtree(folder.parent / "other")
        if keeps:
            calibration_windows(model, tables).save(folder)

    quantization = {"accepted": True, "reason": "it was there", "processor": list(processor)}
    home = shelf.root / "small" / "1.0.0"
    return copy_bundle(home, "1.7.0", change=change, precision="int8", quantization=quantization)


def calibration_windows(model: ServedModel, tables: dict[str, FeatureTable]) -> CalibrationWindows:
    """Windows of both symbols, one at a time as requests have them."""
    rows, symbols, prices = [], sorted(model.scaler.symbols), []
    for number in range(60):
        symbol = symbols[number % 2]
        question = read_history(model, tables[symbol]).question(300 + 20 * number)
        rows.append(prepare(model, question).rows_TF)
        prices.append(question.price)
    return CalibrationWindows(np.stack(rows), np.arange(60) % 2, np.array(prices))


def notes(records: Sequence[logging.LogRecord]) -> list[str]:
    return [each.getMessage() for each in records if each.name == "ml_workbench_service.serving.model"]


async def test_int8_of_this_processor_answers_unmeasured(
    shelf: Shelf, model: ServedModel, tables: dict[str, FeatureTable], caplog: pytest.LogCaptureFixture
) -> None:
    bundle_of_int8(shelf, model, tables, processor=HERE, keeps=False)
    chosen = await shelf.serving.choose("small", "1.7.0")
    record = await shelf.serving.answer(chosen, read_history(model, tables["EUR/USD"]).question(500), "c")
    assert (record.metadata.precision, record.metadata.precision_reason) == ("int8", None)
    assert (notes(caplog.records), shelf.serving.precision_notes) == ([], ({}, {}))


async def test_int8_of_another_processor_answers_where_it_agrees_here_too(
    shelf: Shelf, model: ServedModel, tables: dict[str, FeatureTable], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bundle_of_int8(shelf, model, tables, processor=ELSEWHERE)
    chosen = await shelf.serving.choose("small", "1.7.0")
    record = await shelf.serving.answer(chosen, read_history(model, tables["EUR/USD"]).question(500), "c")
    assert (record.metadata.precision, record.metadata.precision_reason) == ("int8", None)
    assert shelf.serving.precision_notes == ({}, {})
    (line,) = notes(caplog.records)
    assert "measured on avx2 of_another_machine, it agrees on" in line


@pytest.mark.parametrize(
    ("bundle", "why"),
    [({"source": "1.1.0"}, "of a deviation, at most 5%"), ({"keeps": False}, "keeps no calibration windows")],
)
async def test_int8_of_another_processor_gives_way_to_float32_where_it_disagrees_or_cannot_be_measured(
    bundle: dict[str, Any], why: str, shelf: Shelf, model: ServedModel, tables: dict[str, FeatureTable],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bundle_of_int8(shelf, model, tables, processor=ELSEWHERE, **bundle)
    chosen = await shelf.serving.choose("small", "1.7.0")
    question = read_history(model, tables["EUR/USD"]).question(500)
    record = await shelf.serving.answer(chosen, question, "c")
    assert record.metadata.precision == "fp32"
    assert why in (record.metadata.precision_reason or "")
    assert record.prediction == answer(model, question, Circumstances(role="candidate")).prediction
    reasons, warnings = shelf.serving.precision_notes
    assert (reasons, warnings) == ({"small 1.7.0": record.metadata.precision_reason}, {})
    (line,) = notes(caplog.records)
    shown = inference(shelf.serving)
    assert (shown.state, shown.detail) == ("degraded", f"small 1.7.0: {record.metadata.precision_reason}")
    assert "small 1.7.0 answers in float32: int8 was accepted on another processor" in line
    assert chosen.model.card.precision == "int8"  # the card is read, never rewritten


async def test_int8_of_a_card_without_a_processor_counts_as_made_here_and_warns(
    shelf: Shelf, model: ServedModel, tables: dict[str, FeatureTable], caplog: pytest.LogCaptureFixture
) -> None:
    bundle_of_int8(shelf, model, tables, processor=())
    chosen = await shelf.serving.choose("small", "1.7.0")
    record = await shelf.serving.answer(chosen, read_history(model, tables["EUR/USD"]).question(500), "c")
    assert (record.metadata.precision, record.metadata.precision_reason) == ("int8", None)
    reasons, warnings = shelf.serving.precision_notes
    assert (reasons, list(warnings)) == ({}, ["small 1.7.0"])
    shown = inference(shelf.serving)
    assert (shown.state, shown.detail) == ("ok", f"small 1.7.0: {warnings['small 1.7.0']}")
    (line,) = notes(caplog.records)
    assert "does not name the processor" in line


def test_another_machine_measures_what_was_accepted_here(
    shelf: Shelf, model: ServedModel, tables: dict[str, FeatureTable]
) -> None:
    folder = bundle_of_int8(shelf, model, tables, processor=HERE, source="1.1.0")
    card = shelf.registry.card("small", "1.7.0")
    assert load_model(folder, card).precision == "int8"
    assert load_model(folder, card, processor=ELSEWHERE).precision == "fp32"


def as_published_before(folder: Path) -> None:
    """The files as they were before decoders had a kind and labels a number: one target, one unit a symbol."""
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    for scale in recipe["scaler"]["symbols"].values():
        (scale["label_scale"],) = scale["label_scale"]
    del recipe["uncertainty"]["kind"], recipe["uncertainty"]["margin"], recipe["regimes"]
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    for name in ("targets", "quantiles", "classes", "findings"):
        del card[name]
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")


def test_a_version_published_before_there_were_several_targets_answers_as_it_did(
    shelf: Shelf, history: SymbolHistory
) -> None:
    new = load_model(shelf.root / "small" / "1.0.0", shelf.registry.card("small", "1.0.0"))
    folder = copy_bundle(shelf.root / "small" / "1.0.0", "1.6.0", change=as_published_before)
    old = load_model(folder, shelf.registry.card("small", "1.6.0"))
    assert (old.card.target_names, new.card.targets) == (("price_change_1h",), ("price_change_1h",))
    live = Circumstances(role="candidate")
    for row in range(500, 560):
        question = history.question(row)
        found, wanted = (
            answer(model, question, live).model_dump(exclude={"version", "version_id", "timestamp"})
            for model in (old, new)
        )
        assert found == wanted


def test_a_smoke_prediction_is_finite_in_every_size(model: ServedModel) -> None:
    assert np.isfinite(model.smoke().outputs_NK).all()


class Broken:
    """A network whose answer is no number."""

    def predict(self, rows_NTF: Floats32, positions_N: Floats32 | None = None) -> RawPrediction:
        """NaN."""
        return RawPrediction(np.full((len(rows_NTF), 1), np.nan, np.float32), rows_NTF[:, -1])


def test_a_smoke_prediction_that_is_no_number_fails(model: ServedModel) -> None:
    with pytest.raises(PredictionError, match="not a finite number; train it again"):
        replace(model, single=Broken()).smoke()
