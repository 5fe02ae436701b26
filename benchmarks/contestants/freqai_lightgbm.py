"""FreqAI: the `fit` of its own `LightGBMRegressor`, with what its example configuration says: LightGBM's defaults.

    -> {"folder": ".../matrices"}     train, validation and test as `<part>.npy`, labels as `<part>_labels.npy`
    <- {"seconds": 1.2, "rounds": 100, "outputs": ".../freqai_outputs.npy"}

Frames, weights that fall with age, and a part that each round is scored on, as FreqAI's data handler hands them over;
what that handler does before (scaling, outliers) is not timed. The class is asked without freqtrade's exchange,
database and bot around it: `fit` reads nothing else of them.
"""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from freqtrade.freqai.prediction_models.LightGBMRegressor import LightGBMRegressor
from turns import play

WEIGHT_FACTOR = 0.9
"""Of the example configuration: the oldest window counts exp(-1 / 0.9) of the newest."""
EXAMPLE: dict[str, Any] = {"data_split_parameters": {"test_size": 0.33}, "model_training_parameters": {}}


def frames(folder: Path) -> dict[str, Any]:
    """What FreqAI calls the data dictionary: of `test` the part that rounds are scored on."""
    found: dict[str, Any] = {}
    for theirs, ours in (("train", "train"), ("test", "validation")):
        matrix_ND = np.load(folder / f"{ours}.npy")
        names = [f"%-{number}" for number in range(matrix_ND.shape[1])]
        found[f"{theirs}_features"] = pd.DataFrame(matrix_ND, columns=names)
        found[f"{theirs}_labels"] = pd.DataFrame({"&-label": np.load(folder / f"{ours}_labels.npy")})
        num = len(matrix_ND)
        found[f"{theirs}_weights"] = np.exp(-np.arange(num) / (WEIGHT_FACTOR * num))[::-1]
    return found


def turn(folder: str) -> dict[str, Any]:
    """One fit, and what it forecasts of the test part."""
    place = Path(folder)
    given = frames(place)
    regressor = LightGBMRegressor.__new__(LightGBMRegressor)
    regressor.freqai_info = EXAMPLE
    regressor.model_training_parameters = {**EXAMPLE["model_training_parameters"], "verbosity": -1}
    regressor.continual_learning, regressor.dd = False, SimpleNamespace(model_dictionary={})  # no model before this
    begun = time.perf_counter()
    model = regressor.fit(given, SimpleNamespace(pair="EUR/USD"))
    took_s = time.perf_counter() - begun
    matrix_ND = pd.DataFrame(np.load(place / "test.npy"), columns=given["train_features"].columns)
    outputs = place / "freqai_outputs.npy"
    np.save(outputs, np.asarray(model.predict(matrix_ND)))
    return {"seconds": took_s, "rounds": int(model.n_estimators_), "outputs": str(outputs)}


play(turn)
