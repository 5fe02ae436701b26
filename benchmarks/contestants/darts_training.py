"""darts: `BlockRNNModel`, which is this very network: a recurrent layer, a linear layer on its last state."""

from typing import Any

import numpy as np
import pandas as pd
from darts import TimeSeries
from darts.models import BlockRNNModel
from lightning_watch import FASTEST, Watch, play_trainings
from turns import BATCH, LEARNING_RATE, LOOKBACK, UNITS


def fit(cell: str, bars: str, num_batches: int) -> dict[str, Any]:
    """One fresh training of so many batches."""
    rows_RF = np.load(bars)[: num_batches * BATCH + LOOKBACK]
    times = pd.RangeIndex(len(rows_RF))
    target = TimeSeries.from_times_and_values(times, rows_RF[:, :1])
    covariates = TimeSeries.from_times_and_values(times, rows_RF[:, 1:])
    watch = Watch()
    model = BlockRNNModel(
        input_chunk_length=LOOKBACK,
        output_chunk_length=1,
        model=cell,
        hidden_dim=UNITS,
        n_rnn_layers=1,
        dropout=0.0,
        batch_size=BATCH,
        n_epochs=1,
        optimizer_kwargs={"lr": LEARNING_RATE},
        random_state=0,
        pl_trainer_kwargs={**FASTEST, "callbacks": [watch]},
    )
    model.fit(target, past_covariates=covariates, verbose=False, dataloader_kwargs={"num_workers": 0})
    return watch.figures(model.model)


play_trainings(fit)
