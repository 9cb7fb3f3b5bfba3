"""The learning-rate range test (Smith 2015, arXiv 1506.01186): one short run over growing rates.

    lr_i = start (end / start)^(i / N)          smoothed loss: bias-corrected average, rate 0.98

The run ends where the smoothed loss exceeds four times its best, or is NaN.

>>> import jax.numpy as jnp
>>> def step(w, learning_rate, batch):
...     return w - learning_rate * 2 * w, jnp.sum(w**2)
>>> found = lr_range_test(step, jnp.ones(3), [None], start=1e-3, end=10.0, num_steps=60)
>>> found.stopped, 1e-3 < found.suggestions["steep"] < 1.0
(True, True)
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.schedules import suggestions
from adamw_jax.schedules.ramps import positive_steps

MODES = ("exponential", "linear")


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
      learning_rates: the rates tried, in order.
      losses: loss at each, before the step.
      smoothed: bias-corrected moving average of the losses.
      stopped: whether the run ended before ``num_steps`` because the loss blew up.
      suggestions: learning rates by rule: valley, steep, minimum, slide; empty for a run too short.
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    stopped: bool
    suggestions: dict[str, float]

    def to_csv(self, path: str | pathlib.Path) -> None:
        """Writes rates and losses, a line a step, and the suggestions behind them."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["learning_rate", "loss", "smoothed_loss"])
            rows.writerows(zip(self.learning_rates, self.losses, self.smoothed, strict=True))
            rows.writerows([f"suggestion_{k}", v, ""] for k, v in self.suggestions.items())

    def plot(self, axes: Any = None) -> Any:
        """Draws the smoothed loss over the rate, with the suggestions; needs matplotlib."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'adamw-jax[demo]'.") from error
        axes = plt.subplots()[1] if axes is None else axes
        axes.semilogx(self.learning_rates, self.smoothed)
        for marker, (name, rate) in zip("ov^s", self.suggestions.items(), strict=False):
            loss = float(np.interp(rate, self.learning_rates, self.smoothed))
            axes.plot(rate, loss, marker, label=f"{name}: {rate:.2g}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss (smoothed)")
        if self.suggestions:
            axes.legend()
        return axes


def lr_range_test(
    step_fn: Callable[[Any, jax.Array, Any], tuple[Any, Any]],
    state: Any,
    batches: Iterable[Any],
    start: float = 1e-7,
    end: float = 10.0,
    num_steps: int = 100,
    mode: str = "exponential",
    *,
    smoothing: float = 0.98,
    stop_factor: float = 4.0,
    best_after: int = 0,
) -> RangeTest:
    """Runs a training step at growing learning rates and suggests one.

    Args:
      step_fn: ``(state, learning_rate, batch) -> (state, loss)``, jitted or not; must not donate
        its state, which is run on from the given one and then dropped.
      state: whatever the step carries: parameters, optimizer state, ...
      batches: batches to cycle through.
      start: first learning rate, > 0.
      end: the rate that step ``num_steps`` would have, > start.
      num_steps: steps at most.
      mode: ``"exponential"`` spacing, or ``"linear"``: lr_i = i (end / num_steps), from 0.
      smoothing: rate of the loss average, in [0, 1); 0.98 in every fastai version.
      stop_factor: stop where the smoothed loss exceeds this times its best.
      best_after: steps before the best is recorded; 0 (fastai v1, v2), 10 in 0.7.

    Returns:
      Rates, losses and suggestions; nothing of the run remains in ``state``.

    Raises:
      ValueError: an argument is out of range, or there are no batches.
    """
    if not 0 < start < end:
        raise ValueError(f"start and end must satisfy 0 < start < end, got {start} and {end}.")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}.")
    if not 0 <= smoothing < 1 or not stop_factor > 1:
        raise ValueError(
            "smoothing must lie in [0, 1) and stop_factor be > 1, got "
            f"{smoothing!r} and {stop_factor!r}."
        )
    steps = positive_steps("num_steps", num_steps)
    rates, losses, monitor = [], [], _Monitor(smoothing, stop_factor, best_after)
    endless = itertools.cycle(batches)
    for index in range(steps):
        try:
            batch = next(endless)
        except StopIteration:
            raise ValueError("batches is empty: give at least one batch.") from None
        rate = _rate(index, start, end, steps, mode)
        state, loss = step_fn(state, jnp.asarray(rate, jax.dtypes.canonicalize_dtype(float)), batch)
        rates.append(rate)
        losses.append(float(loss))
        if monitor.blown_up(losses[-1]):
            break
    arrays = np.asarray(rates), np.asarray(losses), np.asarray(monitor.smoothed)
    return RangeTest(*arrays, monitor.stopped, _suggest(arrays[0], arrays[2], steps))


def smooth_losses(
    losses: Iterable[float], smoothing: float = 0.98, stop_factor: float = 4.0, best_after: int = 0
) -> tuple[np.ndarray, int | None]:
    """Smoothed losses of a recorded run, and the index at which a range test would stop, or None."""
    monitor = _Monitor(smoothing, stop_factor, best_after)
    for index, loss in enumerate(losses):
        if monitor.blown_up(float(loss)):
            return np.asarray(monitor.smoothed), index
    return np.asarray(monitor.smoothed), None


def suggest(rates: np.ndarray, smoothed: np.ndarray) -> dict[str, float]:
    """Suggestions from a curve that has lost its first tenth and last five points already."""
    if len(rates) < 2 or not np.isfinite(smoothed).all():
        return {}
    return {
        name: rule(rates, smoothed)
        for name, rule in suggestions.RULES.items()
        if name != "slide" or len(rates) > 15
    }


class _Monitor:
    """The smoothed loss, its best, and whether the run has blown up."""

    def __init__(self, smoothing: float, stop_factor: float, best_after: int) -> None:
        self.smoothing, self.stop_factor, self.best_after = smoothing, stop_factor, best_after
        self.average, self.best = 0.0, math.inf
        self.smoothed: list[float] = []
        self.stopped = False

    def blown_up(self, loss: float) -> bool:
        self.average = self.smoothing * self.average + (1 - self.smoothing) * loss
        seen = len(self.smoothed) + 1
        smooth = self.average / (1 - self.smoothing**seen)
        self.smoothed.append(smooth)
        self.stopped = math.isnan(smooth) or smooth > self.stop_factor * self.best
        if seen > self.best_after:
            self.best = min(self.best, smooth)
        return self.stopped


def _rate(index: int, start: float, end: float, steps: int, mode: str) -> float:
    if mode == "linear":
        return end / steps * index
    return start * (end / start) ** (index / steps)


def _suggest(rates: np.ndarray, smoothed: np.ndarray, steps: int) -> dict[str, float]:
    keep = slice(steps // 10, -5)
    return suggest(rates[keep], smoothed[keep])
