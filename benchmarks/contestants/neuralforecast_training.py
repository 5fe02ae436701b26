"""neuralforecast: its `LSTM` and `GRU`, one linear decoder layer, the same number of weights as ours."""

from typing import Any

import numpy as np
import pandas as pd
from lightning_watch import FASTEST, Watch, play_trainings
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MSE
from neuralforecast.models import GRU, LSTM
from turns import BATCH, LEARNING_RATE, LOOKBACK, UNITS


def fit(cell: str, bars: str, num_batches: int) -> dict[str, Any]:
    """One fresh training of so many batches."""
    rows_RF = np.load(bars)[: num_batches * BATCH + LOOKBACK]
    own = [f"f{number}" for number in range(1, rows_RF.shape[1])]
    frame = pd.DataFrame(rows_RF, columns=["y", *own]).assign(unique_id="pair", ds=np.arange(len(rows_RF)))
    model = {"LSTM": LSTM, "GRU": GRU}[cell](
        h=1,
        input_size=LOOKBACK,
        encoder_hidden_size=UNITS,
        encoder_n_layers=1,
        decoder_hidden_size=UNITS,
        decoder_layers=1,
        recurrent=False,
        hist_exog_list=own,
        loss=MSE(),
        max_steps=num_batches,
        val_check_steps=10**9,
        batch_size=1,
        windows_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        scaler_type="identity",
        random_seed=0,
        callbacks=[Watch()],
        **FASTEST,
    )
    forecast = NeuralForecast(models=[model], freq=1)
    forecast.fit(frame, val_size=0)
    trained = forecast.models[0]  # a copy, and so is its watch
    watch: Watch = next(each for each in trained.trainer_kwargs["callbacks"] if isinstance(each, Watch))
    return watch.figures(trained)


play_trainings(fit)
