"""Compute theoretical curves, to be drawn over measurements.

>>> round(decoupled_decay_kept(steps=4000, learning_rate=1e-3, decay=0.2), 4)
0.4493
"""

from __future__ import annotations

import numpy as np


def decoupled_decay_kept(steps: int, learning_rate: float, decay: float) -> float:
    """Return the share of a weight that AdamW keeps under noise gradients: ``(1 - lr wd)^T``."""
    return (1 - learning_rate * decay) ** steps


def l2_decay_kept(steps: int, learning_rate: float, l2: float, noise: float) -> float:
    """Return what Adam with L2 keeps of a weight of 1 if its gradient is noise of this deviation.

    The gradient is noise + l2 w, so the first moment approaches l2 w and the second
    noise^2 + (l2 w)^2. With many steps

        dw/dt = -lr l2 w / sqrt(noise^2 + (l2 w)^2)

    integrated here by the classical Runge-Kutta method.
    """

    def slope(w: float) -> float:
        return -learning_rate * l2 * w / np.hypot(noise, l2 * w)

    w = 1.0
    for _ in range(steps):
        if w < learning_rate:  # smaller than one step: it oscillates around zero
            return 0.0
        a = slope(w)
        b = slope(w + a / 2)
        c = slope(w + b / 2)
        d = slope(w + c)
        w += (a + 2 * b + 2 * c + d) / 6
    return float(w)


def reddi_drift(
    b1: float, b2: float, large: float, small: float, period: int, *, amsgrad: bool
) -> float:
    """Return the mean step per unit of learning rate on Reddi's problem, for periodic moments.

    The gradient is ``large`` once in ``period`` steps and ``-small`` in the others. j steps after
    the large one, the moments are

        m_j = -small   + (large + small)     (1 - b1) b1^j / (1 - b1^period)
        v_j =  small^2 + (large^2 - small^2) (1 - b2) b2^j / (1 - b2^period)

    Adam divides m_j by sqrt(v_j), AMSGrad by the largest, sqrt(v_0).
    """
    j = np.arange(period)
    m = -small + (large + small) * (1 - b1) * b1**j / (1 - b1**period)
    v = small**2 + (large**2 - small**2) * (1 - b2) * b2**j / (1 - b2**period)
    return float(np.mean(-m / np.sqrt(v[0] if amsgrad else v)))


def reddi_path(
    count: np.ndarray, learning_rate: float, drift: float, offset: float = 0
) -> np.ndarray:
    """Return x after ``count`` steps from 0, kept in [-1, 1].

    The learning rate is ``lr / sqrt(t + offset)``, whose sum is about
    ``2 lr (sqrt(count + offset) - sqrt(offset))``.
    """
    total = 2 * learning_rate * (np.sqrt(count + offset) - np.sqrt(offset))
    return np.clip(drift * total, -1, 1)
