# %% [markdown]
# # Deploy, replay, and an agent that learns from it
#
# A live version's predictions enter the queue, where agents act on them. A replay sends the past through exactly the
# same path, so an agent can learn before anything is at stake.

# %%
import time

from ml_workbench_client import Workbench

wb = Workbench()
job = wb.train(
    name="Linear, live",
    model_type="time_series",
    family="linear",
    features=["return_1", "rsi_14"],
    target="price_change_1h",
    symbols=["EUR/USD"],
    start_date="2024-06-01T00:00:00Z",
    end_date="2025-01-01T00:00:00Z",
    force=True,
)
job.progress()

# %% [markdown]
# ## Deploy
#
# Gates first; a version without proven skill goes live with a warning that says so, unless the gate is enforced.

# %%
model = job.model
deployment = model.deploy(deployment_target="local", monitoring_level="high", reason="to try it out")
print(deployment.status, deployment.warnings)
for gate in deployment.gate_results:
    print(f"{gate.gate:22} passed={gate.passed} enforced={gate.enforced} {gate.value}")

# %%
model.predict(as_of="2025-01-15T12:00:00Z").direction

# %% [markdown]
# ## One more agent
#
# It has its own place in the queue, whatever others do; this one learns slowly and dislikes risk.

# %%
agent = wb.create_agent(
    family="q_learning",
    hyperparameters={"learning_rate": 0.05, "exploration_rate": 0.5, "discount_factor": 0.9},
    reward={"risk_aversion": 1000},
)
agent.state

# %% [markdown]
# ## Replay two weeks

# %%
replay = wb.replay(
    model_id=model.id,
    version=model.version,
    symbols=["EUR/USD"],
    start_date="2025-01-06T00:00:00Z",
    end_date="2025-01-20T00:00:00Z",
)
replay.result()

# %% [markdown]
# Bar by bar: what was answered, the position that its signal held, and what that step paid.

# %%
replay.series().to_polars().tail(5)

# %%
num_published = replay.result()["num_published"]
while (state := agent.state).num_applied < num_published:
    time.sleep(0.1)
print(f"{state.num_applied} applied, {state.num_actions} decided, reward {state.cumulative_reward:.5f} after costs")

# %% [markdown]
# ## Nothing is lost on the way
#
# Per group: enqueued = acknowledged + pending + waiting + dropped + expired + given up. The balance is 0.

# %%
queue = wb.queue
for group in queue.groups:
    print(group.group, group.enqueued, group.acked, group.dropped_oldest, "balance", group.balance)

# %%
agent.stop().status

# %% [markdown]
# ## What became of it
#
# The history says what served when; monitoring says how a live version fares.

# %%
wb.deployments(model_id=model.id).all()

# %%
model.monitoring()

# %%
model.figure("drawdown")
