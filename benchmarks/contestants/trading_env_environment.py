"""gym-trading-env: its TradingEnv with the positions 0 and 1, stepped in a loop over a list of actions, silent."""

import time
from typing import Any

import numpy as np
import pandas as pd
from gym_trading_env.environments import TradingEnv
from turns import play


def turn(bars: str, actions: str, window: int, fee: float, curve: str) -> dict[str, Any]:
    """One episode over all bars; its account after each step goes into the file `curve`."""
    columns = np.load(bars)
    frame = pd.DataFrame(columns, columns=["close", "feature_price", "feature_diff"])
    frame["open"] = frame["high"] = frame["low"] = frame["close"]
    frame.index = pd.date_range("2017-01-01", periods=len(frame), freq="h")
    environment = TradingEnv(
        df=frame,
        positions=[0, 1],
        windows=window,
        trading_fees=fee,
        initial_position=0,
        portfolio_initial_value=1.0,
        verbose=0,
    )
    chosen = np.load(actions).tolist()
    environment.reset()
    step = environment.step
    begun = time.process_time()
    for action in chosen:
        step(action)
    seconds = time.process_time() - begun
    np.save(curve, np.log(environment.historical_info["portfolio_valuation"][1:].astype(np.float64)))
    return {"steps_per_s": len(chosen) / seconds}


play(turn)
