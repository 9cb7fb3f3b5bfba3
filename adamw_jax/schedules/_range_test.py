"""Run the learning-rate range test (Smith 2015, arXiv 1506.01186), a short run at rising rates.

    lr_i = start (end / start)^(i / N)          smoothed loss: bias-corrected average, rate 0.98

The run ends if the smoothed loss exceeds four times its best, or is not finite.

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

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, one_of, positive_steps
from adamw_jax.schedules._suggestions import suggest

MODES = ("exponential", "linear")


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTest:
    """Result of a range test.

    Attributes:
      learning_rates: the learning rates in order.
      losses: loss at each learning rate, before the step.
      smoothed: bias-corrected moving average of the losses.
      stopped_at: index of the step at which the loss diverged, the last one recorded; None if the
        run reached its end.
      suggestions: learning rates by rule (valley, steep, minimum, slide), from the curve without
        its first ``num_steps // 10`` and its last five points (fastai v2); empty for a short run.
        A rule that ends past the lowest smoothed loss is left out.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> def step(w, batch, learning_rate):
      ...     return w - learning_rate * 2 * w, w * w
      >>> found = aj.lr_range_test(step, jnp.float32(1.0), range(100), num_steps=50)
      >>> len(found.losses) == len(found.learning_rates) == len(found.smoothed)
      True
    """

    learning_rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    stopped_at: int | None
    suggestions: dict[str, float]

    @property
    def stopped(self) -> bool:
        """Whether the run ended early because the loss diverged."""
        return self.stopped_at is not None

    def to_csv(self, path: str | pathlib.Path) -> None:
        """Write learning rate, loss and smoothed loss, one line per step.

        Args:
          path: path of the file, which is overwritten.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["learning_rate", "loss", "smoothed_loss"])
            columns = self.learning_rates, self.losses, self.smoothed
            rows.writerows(zip(*(column.tolist() for column in columns), strict=True))

    def plot(self, axes: Any = None) -> Any:
        """Plot the smoothed loss against the rate, with the suggestions; needs matplotlib.

        Args:
          axes: matplotlib axes to plot on; None makes a figure.

        Returns:
          The axes.
        """
        if axes is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError as error:
                raise ImportError(
                    "RangeTest.plot needs matplotlib: pip install matplotlib."
                ) from error
            axes = plt.subplots()[1]
        axes.plot(self.learning_rates, self.smoothed)
        if self.learning_rates[0] > 0:
            axes.set_xscale("log")
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
    """Run a training step at rising learning rates, and suggest learning rates.

    The defaults are those of fastai v1 and v2. fastai 0.7 has ``start=1e-5``, an epoch of steps and
    ``best_after=11``.

    Args:
      step_fn: ``(state, learning_rate, batch) -> (state, loss)``. It may be jitted and may donate
        its state. The learning rate is a scalar array, so a jitted step compiles once.
      state: state of the step: parameters, optimizer state, ... The run uses a copy of its arrays.
      batches: batches to cycle through.
      start: first learning rate, > 0.
      end: learning rate that step ``num_steps`` would have, > start.
      num_steps: largest number of steps.
      mode: ``"exponential"`` spacing, or ``"linear"``: lr_i = i (end / num_steps), from 0 whatever
        ``start`` (fastai 0.7).
      smoothing: decay rate of the loss average, in [0, 1).
      stop_factor: stop if the smoothed loss exceeds this times its best, > 1. If the best is below
        0, stop at best + (stop_factor - 1) |best|. With infinity stop only at a loss that is not
        finite.
      best_after: number of steps before the best is recorded.

    Returns:
      Rates, losses and suggestions.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> def step(w, batch, learning_rate):
      ...     return w - learning_rate * 2 * w, w * w
      >>> found = aj.lr_range_test(step, jnp.float32(1.0), range(100), num_steps=50)
      >>> suggestions = found.suggestions
    """
    start = number("start", start, above=0)
    end = number("end", end, above=start)
    one_of("mode", mode, MODES)
    number("smoothing", smoothing, least=0, below=1)
    if stop_factor != math.inf:
        number("stop_factor", stop_factor, above=1)
    number("best_after", best_after, least=0)
    steps = positive_steps("num_steps", num_steps)
    state = jax.tree.map(_copy, state)
    rates, losses, monitor = [], [], _Monitor(smoothing, stop_factor, best_after)
    endless = itertools.cycle(batches)
    stopped_at = None
    for index in range(steps):
        try:
            batch = next(endless)
        except StopIteration:
            raise ValueError("batches is empty: give at least one batch.") from None
        rates.append(_rate(index, start, end, steps, mode))
        rate = jnp.asarray(rates[-1], numerics.default_float())
        state, loss = _pair(step_fn(state, rate, batch))
        losses.append(loss)
        if monitor.blown_up(loss):
            stopped_at = index
            break
    tried, smoothed = np.asarray(rates), np.asarray(monitor.smoothed)
    kept = slice(steps // 10, -5)
    return RangeTest(
        tried, np.asarray(losses), smoothed, stopped_at, suggest(tried[kept], smoothed[kept])
    )


class _Monitor:
    """The smoothed loss, its best, and whether the run has blown up."""

    def __init__(self, smoothing: float, stop_factor: float, best_after: int) -> None:
        self.smoothing, self.stop_factor, self.best_after = smoothing, stop_factor, best_after
        self.average, self.best = 0.0, math.inf
        self.smoothed: list[float] = []

    def blown_up(self, loss: float) -> bool:
        self.average = self.smoothing * self.average + (1 - self.smoothing) * loss
        seen = len(self.smoothed) + 1
        smooth = self.average / (1 - self.smoothing**seen)
        self.smoothed.append(smooth)
        # stop_factor * best for a best above 0; no limit while there is no best.
        limit = math.inf
        if math.isfinite(self.best):
            limit = self.best + (self.stop_factor - 1) * abs(self.best)
        if seen > self.best_after:
            self.best = min(self.best, smooth)
        return not math.isfinite(smooth) or smooth > limit


def _rate(index: int, start: float, end: float, steps: int, mode: str) -> float:
    if mode == "linear":
        return end / steps * index
    return start * (end / start) ** (index / steps)


def _copy(leaf: Any) -> Any:
    """Copy an array, because a step may donate it or write into it."""
    return leaf.copy() if isinstance(leaf, (jax.Array, np.ndarray)) else leaf


def _pair(result: Any) -> tuple[Any, float]:
    try:
        state, loss = result
        return state, float(loss)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "step_fn must return (state, loss) with a scalar loss, got "
            f"{jax.tree.map(jnp.shape, result) if isinstance(result, tuple) else type(result)}."
        ) from error
