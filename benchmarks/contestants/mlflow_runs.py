"""Runs for `mlflow ui` to show: `python mlflow_runs.py STORE_URI ARTIFACTS NUM` prints experiment's id and a run's.

Each as a training of ours is mirrored: parameters, the losses of 50 epochs, the evaluation's figures, tags.
"""

import sys

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

NUM_EPOCHS = 50
CURVES = ("train_loss", "validation_loss", "learning_rate", "validation_skill")
FIGURES = ("sharpe", "net_log_return", "p_value", "power", "coverage", "rmse", "mae", "direction_accuracy")
PARAMETERS = ("family", "features", "target", "symbols", "timeframe", "lookback", "epochs", "batch_size", "seeds")


def main(store: str, artifacts: str, num: int) -> None:
    """Makes them."""
    client = MlflowClient(tracking_uri=store)
    experiment = client.create_experiment("comparable", artifact_location=artifacts)
    run_id = ""
    for number in range(num):
        run = client.create_run(experiment, run_name=f"copy-{number}")
        run_id = run.info.run_id
        curves = [
            Metric(name, 1.0 / (1 + epoch), 1_700_000_000_000 + 1000 * epoch, epoch)
            for name in CURVES
            for epoch in range(NUM_EPOCHS)
        ]
        figures = [Metric(name, 0.1 * number, 1_700_000_100_000, 0) for name in FIGURES]
        client.log_batch(
            run_id,
            metrics=[*curves, *figures],
            params=[Param(name, f"{name} of copy {number}") for name in PARAMETERS],
            tags=[RunTag("verdict", "no_skill"), RunTag("model_id", f"copy_{number}")],
        )
        client.set_terminated(run_id)
    print(experiment, run_id, num - 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
