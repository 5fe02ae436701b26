"""Null series: where nobody can have skill, at most one model in twenty may be told that it has.

Every series is another driftless market (`series.null_series`), with a registry and ledgers of its own: one training,
one test-set evaluation. The naive rule that the verdict is compared with is what most tools show: the best validation
score beats the random walk.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ml_workbench_service.contracts.models import ModelCard
from studies.fits import Notes, bench_on, experiment_once, train_once, training_request
from studies.series import null_series
from studies.tables import Goal, Run, Table, names, of_all, share
from studies.workers import in_workers

NUM_BARS = 10_000
"""Some 1,950 test moments: power over 0.85 against R² = 0.5 %, so that few verdicts are `insufficient_data`."""
NUM_SERIES = 200
NUM_TUNED = 40
NUM_TRIALS = 27
MOST_SKILL = 0.05
FEATURES = ["return_1", "volatility_24", "rsi_14"]
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"lookback": 8},
    "gru": {"lookback": 8, "gru_units": 8, "batch_size": 512, "epochs": 10, "learning_rate": 0.003},
}
SEARCH_SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"low": 3e-4, "high": 0.03, "log": True},
    "batch_size": {"choices": [128, 512, 2048]},
    "lookback": {"choices": [3, 8, 24]},
    "features": {"choices": [["return_1"], FEATURES, [*FEATURES, "macd", "bb_percent", "roc_10"]]},
}


@dataclass(frozen=True)
class Trial:
    """One series, and what is done with it."""

    number: int
    seed: int
    num_bars: int
    family: str
    num_trials: int = 0  # 0: one training instead of a search


@dataclass(frozen=True)
class Finding:
    """What the card says, and what the naive rule would have said."""

    kind: str
    verdict: str
    economic: str
    certificate: str
    validation_beats_walk: bool
    test_beats_walk: bool


def reach_verdict(trial: Trial) -> Finding:
    """Makes the series, trains or tunes on it through the workflow, and reads the card."""
    series = null_series(trial.num_bars, seed=trial.seed, number=trial.number)
    with bench_on(series.write) as workbench:
        if trial.num_trials:
            tuned = experiment_once(workbench, _search(trial))
            card, validation_skill = tuned.card, tuned.result["best_value"]
        else:
            notes = Notes()
            card = train_once(workbench, _request(trial, HYPERPARAMETERS[trial.family]), report=notes)
            validation_skill = notes.best["stop_skill"]
    return _finding(series.kind, card, validation_skill)


def tables(run: Run) -> list[Table]:
    """One table: `linear`, a small gru, and `linear` after a search."""
    num_bars = NUM_BARS if not run.is_quick else 4_000
    kinds = [
        ("`linear`", "linear", run.size(NUM_SERIES, quick=4), 0),
        ("small `gru`", "gru", run.size(NUM_SERIES, quick=4), 0),
        (f"`linear`, best of {NUM_TRIALS} trials", "linear", run.size(NUM_TUNED, quick=2), NUM_TRIALS),
    ]
    rows, goals = [], []
    for place, (title, family, num_series, num_trials) in enumerate(kinds):
        tries = run.size(num_trials, quick=min(num_trials, 3))
        numbers = range(place * NUM_SERIES, place * NUM_SERIES + num_series)
        trials = [Trial(number, run.seed, num_bars, family, tries) for number in numbers]
        found = in_workers(
            reach_verdict, trials, progress=run.progress(f"null series, {title}"), num_workers=run.num_workers
        )
        rows.append(_row(title, found))
        rate = sum(each.verdict == "skill" for each in found) / len(found)
        goals.append(Goal(f"null series, {title}: share with skill", rate, MOST_SKILL, at_most=True))
    caption = (
        f"Driftless series of {num_bars:,} hourly bars: GARCH with Student's t and leverage, in turn alone, with "
        "jumps, with hidden regimes and with both; each with parameters of its own. `price_change_1h` from "
        f"{names(FEATURES)}, lookback 8, `validation_split` 0.4. The search goes over learning rate, batch size, "
        "lookback and features. "
        "Every series gets one verdict from one test-set evaluation (`looks` is 1)."
    )
    columns = [
        "model", "`skill`", "exact 95 % interval", "`insufficient_data`", "certificate failed", "`profitable`",
        "naive: validation beats random walk", "naive: test error under random walk's",
    ]  # fmt: skip
    return [Table("null_series", "Null series", caption, columns, rows, goals)]


def _request(trial: Trial, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    return training_request("Null", FEATURES, family=trial.family, hyperparameters=hyperparameters)


def _search(trial: Trial) -> dict[str, Any]:
    return {
        "name": "Null",
        "base": _request(trial, {}),
        "search_space": SEARCH_SPACE,
        "sampler": "tpe",
        "num_trials": trial.num_trials,
        "seed": trial.number,
    }


def _finding(kind: str, card: ModelCard, validation_skill: float) -> Finding:
    skill = card.evaluation.skill.get("mse_against_random_walk")
    return Finding(
        kind=kind,
        verdict=card.evaluation.verdict,
        economic=card.evaluation.economic or "none",
        certificate=card.certificate.status if card.certificate is not None else "none",
        validation_beats_walk=validation_skill > 0,
        test_beats_walk=skill is not None and skill > 0,
    )


def _row(title: str, found: list[Finding]) -> list[str]:
    is_skill = [each.verdict == "skill" for each in found]
    kinds = Counter(each.kind for each in found if each.verdict == "skill")
    where = f" ({', '.join(f'{kind}: {num}' for kind, num in sorted(kinds.items()))})" if kinds else ""
    return [
        title,
        of_all(is_skill) + where,
        share(is_skill),
        of_all([each.verdict == "insufficient_data" for each in found]),
        of_all([each.certificate == "failed" for each in found]),
        of_all([each.economic == "profitable" for each in found]),
        of_all([each.validation_beats_walk for each in found]),
        of_all([each.test_beats_walk for each in found]),
    ]
