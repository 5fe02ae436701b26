"""gym-anytrading: its StocksEnv, stepped in a loop over a list of actions; its `Short` is a flat position."""

import time
from typing import Any

import numpy as np
from anytrading_stocks import Stocks
from turns import play


def turn(bars: str, actions: str, window: int, fee: float, curve: str) -> dict[str, Any]:
    """One episode over all bars; its account after each step goes into the file `curve`."""
    environment = Stocks(bars, window, fee)
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
