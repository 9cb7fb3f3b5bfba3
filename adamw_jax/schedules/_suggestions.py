"""Suggest learning rates from a range test, by the rules of fastai v2.

    steep    the rate at which the loss falls fastest over log(learning rate)
    minimum  a tenth of the rate with the lowest loss
    valley   the middle of the longest decreasing subsequence of losses
    slide    the start of an even slope, searched from the right

>>> rates = np.geomspace(1e-4, 1.0, 40)
>>> losses = (np.log10(rates) + 1.0) ** 2
>>> round(minimum(rates, losses), 3)
0.009
"""

from __future__ import annotations

import numpy as np

SLIDE_DISTANCE = 15


def steep(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate at the steepest descent of the loss over the logarithm of the rate."""
    slopes = np.diff(losses) / np.diff(np.log(rates))
    return float(rates[int(np.argmin(slopes))])


def minimum(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return a tenth of the rate with the lowest loss."""
    return float(rates[int(np.argmin(losses))]) / 10


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """Return the rate in the middle of the longest decreasing subsequence of losses."""
    longest = np.ones(len(losses), int)
    for here in range(1, len(losses)):
        better = longest[:here][losses[:here] > losses[here]]
        if better.size:
            longest[here] = better.max() + 1
    end = int(np.argmax(longest))
    if end == 0:
        return float(rates[0])  # the loss never falls
    # As in fastai, assume that the subsequence is the points just before its end.
    start = end - longest[end]
    third = (end - start) / 3
    return float(rates[start + int(third) + int(third / 2)])


def slide(
    rates: np.ndarray,
    losses: np.ndarray,
    distance: int = SLIDE_DISTANCE,
    threshold: float = 0.005,
) -> float:
    """Return the rate ``distance`` points before the first even slope from the right."""
    slopes = np.gradient(losses)
    right, found = -1, float(rates[-1 - distance])
    while right - distance >= -len(losses):
        left = right - distance
        if abs(slopes[right] - slopes[left]) <= threshold:
            break
        found = float(rates[left])
        right -= 1
    return found


RULES = {"valley": valley, "steep": steep, "minimum": minimum, "slide": slide}


def suggest(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Return the rate of each rule that has enough points; none if a loss is not finite.

    A rule that ends past the lowest loss, where the loss has turned, has failed and is left out.
    """
    rates, losses = np.asarray(rates, float), np.asarray(losses, float)
    if len(rates) < 2 or not np.isfinite(losses).all() or not (rates > 0).all():
        return {}
    found = {
        name: rule(rates, losses)
        for name, rule in RULES.items()
        if name != "slide" or len(rates) > SLIDE_DISTANCE
    }
    turn = rates[int(np.argmin(losses))]
    return {name: rate for name, rate in found.items() if rate <= turn}
