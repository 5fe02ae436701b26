# %% [markdown]
# # An experiment, and how its winner compares
#
# A search tries settings on the validation part alone. Only its winner is evaluated on the test part, once; every
# trial is counted, so that searching longer does not make chance look like skill.

# %%
from ml_workbench_client import Workbench

wb = Workbench()
base = dict(
    name="Linear, searched",
    model_type="time_series",
    family="linear",
    features=["return_1", "rsi_14", "volatility_24"],
    target="price_change_1d",
    symbols=["EUR/USD"],
    start_date="2015-01-01T00:00:00Z",
    end_date="2025-01-01T00:00:00Z",
    hyperparameters={"epochs": 10},
)

# %% [markdown]
# ## What can be searched
#
# Each family's hyper-parameters as JSON Schema, with bounds and a sentence each.

# %%
family = next(
    family for kind in wb.model_types.model_types for family in kind.families if family.name == base["family"]
)
{name: field.get("description") for name, field in family.hyperparameters["properties"].items()}

# %%
experiment = wb.search(
    name="Learning rate and memory",
    base=base,
    search_space={"learning_rate": {"low": 0.0003, "high": 0.01, "log": True}, "lookback": {"choices": [8, 24]}},
    sampler="random",
    num_trials=3,
)
experiment.progress()

# %%
found = experiment.details
for trial in found.trials:
    print(trial.number, trial.state, trial.value, trial.params)
print("best:", found.best_trial.params, " what mattered:", found.importance)

# %% [markdown]
# ## The winner beside a plain training

# %%
plain = wb.train(**{**base, "name": "Linear, plain", "force": True})
plain.progress()

# %%
winner, other = experiment.model.card, plain.model.card
for name in ("rmse", "direction_accuracy", "interval_coverage", "skill_mse_against_random_walk"):
    print(f"{name:32} {winner.metrics[name]:.6f} {other.metrics[name]:.6f}")
print(winner.evaluation.verdict, "|", other.evaluation.verdict)

# %% [markdown]
# The same on common rows, as a fair comparison needs it: `compare` leaves out what one of them has not answered.

# %%
both = wb.compare(f"{winner.id}@{winner.version}", f"{other.id}@{other.version}")
both

# %%
experiment.model.figure("importance")

# %%
experiment.trials().to_polars().select("number", "state", "value", "params.learning_rate")

# %% [markdown]
# ## Everything so far
#
# Lists follow all their pages; `all()` makes rows that show themselves as a table and become frames.

# %%
wb.models().all()

# %%
wb.experiments().all().to_polars().select("id", "name", "status", "num_finished", "best_value")
