"""LSTM and GRU cells: one time step of all windows, forward and backward, after and before the matrix product.

    LSTM  i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of the products     c' = f c + i g       h' = o tanh(c')
    GRU   r, z = sigmoid, sigmoid of the products     n = tanh(xn + r q)   h' = n + z (h - n)   gates r, z, n, q

Compiled, because torch needs seven small operations a step for an LSTM where this is one. Loops are many and short on
purpose: the compiler vectorises a loop only if it can check that its arrays do not overlap, and gives up at eight pairs
(four times slower). Comparisons are written so that a NaN stays one. Numbers come as an array of the gates' own type:
a literal would make every float32 a float64.

Shape legend: T time steps, N windows, H hidden units, G = 4 H gates, K = H + features + 1. Needs numba.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Floats = np.ndarray[Any, Any]

NUMBERS = (0.0, 0.5, 1.0, 20.0, 1 / 8, 10395.0, 1260.0, 21.0, 4725.0, 210.0)
"""Zero, half, one, the bound beyond which tanh is 1 in double precision, and the fraction of `_squash`."""


def _compiled(function: Kernel) -> Kernel:
    """Compiled on first use and kept on disk, or for this process where no folder takes the cache."""
    try:
        kept: Kernel = numba.njit(cache=True, error_model="numpy", fastmath={"contract"})(function)
    except RuntimeError:
        fresh: Kernel = numba.njit(error_model="numpy", fastmath={"contract"})(function)
        return fresh
    return kept


@_compiled
def _squash(row: Floats, offset: Any, numbers: Floats) -> None:
    """The logistic function for an offset of a half, tanh for none: offset + (1 - offset) tanh((1 - offset) x).

    Lambert's continued fraction for tanh(x / 8) to six places, doubled three times: tanh 2y = 2 tanh y / (1 + tanh² y).
    Doubling shrinks the fraction's error below a double's precision.
    """
    gain, bound, eighth = numbers[2] - offset, numbers[3], numbers[4]
    a0, a1, a2, b1, b2 = numbers[5], numbers[6], numbers[7], numbers[8], numbers[9]
    for j in range(row.shape[0]):
        x = gain * row[j]
        x = bound if x > bound else x
        x = -bound if x < -bound else x
        x *= eighth
        s = x * x
        p, q = x * (a0 + s * (a1 + s * a2)), a0 + s * (b1 + s * (b2 + s))
        half, q = p * q, q * q + p * p
        p = half + half
        half, q = p * q, q * q + p * p
        p = half + half
        half, q = p * q, q * q + p * p
        row[j] = offset + gain * (half + half) / q


@_compiled
def lstm_forward(
    t: int, gates_TNG: Floats, states_TNK: Floats, cells_TNH: Floats, bounded_TNH: Floats, numbers: Floats
) -> None:
    """From products to gates, in place, and on to the cell, its tanh, and the next state."""
    units = bounded_TNH.shape[2]
    none, half = numbers[0], numbers[1]
    for window in range(gates_TNG.shape[1]):
        gates, cell, following = gates_TNG[t, window], cells_TNH[t, window], cells_TNH[t + 1, window]
        bounded, state = bounded_TNH[t, window], states_TNK[t + 1, window]
        _squash(gates[: 2 * units], half, numbers)
        _squash(gates[2 * units : 3 * units], none, numbers)
        _squash(gates[3 * units :], half, numbers)
        enter, keep, new, leave = gates[:units], gates[units:], gates[2 * units :], gates[3 * units :]
        for j in range(units):
            value = keep[j] * cell[j] + enter[j] * new[j]
            following[j] = value
            bounded[j] = value
        _squash(bounded, none, numbers)
        for j in range(units):
            state[j] = leave[j] * bounded[j]


@_compiled
def lstm_backward(
    t: int, gates_TNG: Floats, states_TNK: Floats, cells_TNH: Floats, bounded_TNH: Floats, numbers: Floats,
    dout_TNH: Floats, dstate_NH: Floats, dcell_NH: Floats,
) -> None:  # fmt: skip
    """From gates to the products' gradients, in place, and back to the state and cell before.

    The state's gradient lacks what comes through the product.
    """
    units, one = bounded_TNH.shape[2], numbers[2]
    for window in range(gates_TNG.shape[1]):
        gates, cell, bounded = gates_TNG[t, window], cells_TNH[t, window], bounded_TNH[t, window]
        enter, keep, new, leave = gates[:units], gates[units:], gates[2 * units :], gates[3 * units :]
        dout, dstate, dcell = dout_TNH[t, window], dstate_NH[window], dcell_NH[window]
        for j in range(units):
            dcell[j] += (dstate[j] + dout[j]) * leave[j] * (one - bounded[j] * bounded[j])
        for j in range(units):
            leave[j] = (dstate[j] + dout[j]) * bounded[j] * leave[j] * (one - leave[j])
        for j in range(units):
            i, g = enter[j], new[j]
            enter[j] = dcell[j] * g * i * (one - i)
            new[j] = dcell[j] * i * (one - g * g)
        for j in range(units):
            f = keep[j]
            keep[j] = dcell[j] * cell[j] * f * (one - f)
            dcell[j] *= f
        dstate[:] = numbers[0]


@_compiled
def gru_forward(
    t: int, gates_TNG: Floats, states_TNK: Floats, cells_TNH: Floats, bounded_TNH: Floats, numbers: Floats
) -> None:
    """From products to gates, in place, and on to the next state; a GRU has no cell."""
    units = bounded_TNH.shape[2]
    for window in range(gates_TNG.shape[1]):
        gates, state, following = gates_TNG[t, window], states_TNK[t, window], states_TNK[t + 1, window]
        reset, update, new, inner = gates[:units], gates[units:], gates[2 * units : 3 * units], gates[3 * units :]
        _squash(gates[: 2 * units], numbers[1], numbers)
        for j in range(units):
            new[j] += reset[j] * inner[j]
        _squash(new, numbers[0], numbers)
        for j in range(units):
            following[j] = new[j] + update[j] * (state[j] - new[j])


@_compiled
def gru_backward(
    t: int, gates_TNG: Floats, states_TNK: Floats, cells_TNH: Floats, bounded_TNH: Floats, numbers: Floats,
    dout_TNH: Floats, dstate_NH: Floats, spare_NH: Floats,
) -> None:  # fmt: skip
    """From gates to the products' gradients, in place, and back to the state before, as `lstm_backward` does."""
    units, one = bounded_TNH.shape[2], numbers[2]
    for window in range(gates_TNG.shape[1]):
        gates, state = gates_TNG[t, window], states_TNK[t, window]
        reset, update, new, inner = gates[:units], gates[units:], gates[2 * units :], gates[3 * units :]
        dout, dstate, whole = dout_TNH[t, window], dstate_NH[window], spare_NH[window]
        for j in range(units):
            d = dstate[j] + dout[j]
            whole[j] = d
            dstate[j] = d * update[j]
        for j in range(units):
            z, n = update[j], new[j]
            update[j] = whole[j] * (state[j] - n) * z * (one - z)
            new[j] = whole[j] * (one - z) * (one - n * n)
        for j in range(units):
            r, d = reset[j], new[j] * reset[j]
            reset[j] = d * inner[j] * (one - r)
            inner[j] = d
