"""gym-anytrading: its StocksEnv, stepped in a loop over a list of actions; its `Short` is a flat position.

Prices stay float64 by its own hook `_process_data` (its default rounds them to float32, and its account with them).
"""

import time
from typing import Any

import numpy as np
import pandas as pd
from gym_anytrading.envs import StocksEnv
from turns import play


class Stocks(StocksEnv):
    """Prices and features as the benchmark gives them."""

    def _process_data(self) -> tuple[np.ndarray, np.ndarray]:
        return self.df["Close"].to_numpy(), self.df[["price", "diff"]].to_numpy(dtype=np.float32)


def turn(bars: str, actions: str, window: int, fee: float, curve: str) -> dict[str, Any]:
    """One episode over all bars; its account after each step goes into the file `curve`."""
    columns = np.load(bars)
    frame = pd.DataFrame(columns, columns=["Close", "price", "diff"])
    environment = Stocks(df=frame, window_size=window, frame_bound=(window, len(frame)))
    environment.trade_fee_bid_percent = environment.trade_fee_ask_percent = fee
    # Past the last decision that can be paid it steps once more, flat.
    chosen = [*np.load(actions).tolist(), 0]
    environment.reset()
    step = environment.step
    begun = time.process_time()
    for action in chosen:
        step(action)
    seconds = time.process_time() - begun
    np.save(curve, np.log(environment.history["total_profit"][: len(chosen) - 1]))
    return {"steps_per_s": len(chosen) / seconds}


play(turn)
