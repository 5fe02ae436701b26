"""gym-anytrading's StocksEnv over the benchmark's bars, as two contestants run it.

Prices stay float64 by its own hook `_process_data` (its default rounds them to float32, and its account with them).
"""

import numpy as np
import pandas as pd
from gym_anytrading.envs import StocksEnv


class Stocks(StocksEnv):
    """Prices and features as the benchmark gives them."""

    def __init__(self, bars: str, window: int, fee: float) -> None:
        frame = pd.DataFrame(np.load(bars), columns=["Close", "price", "diff"])
        super().__init__(df=frame, window_size=window, frame_bound=(window, len(frame)))
        self.trade_fee_bid_percent = self.trade_fee_ask_percent = fee

    def _process_data(self) -> tuple[np.ndarray, np.ndarray]:
        return self.df["Close"].to_numpy(), self.df[["price", "diff"]].to_numpy(dtype=np.float32)
