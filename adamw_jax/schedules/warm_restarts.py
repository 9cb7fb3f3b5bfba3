"""Cosine annealing with warm restarts, and the normalised decay that goes with it.

    eta_t = eta_min + (1 - eta_min) (1 + cos(pi T_cur / T_i)) / 2,   lr_t = lr eta_t
    lambda_i = lambda_norm / sqrt(updates in period i)

Loshchilov & Hutter, SGDR (1608.03983) and Decoupled Weight Decay Regularization (1711.05101,
appendix B). With ``adamw(restarts, decay="schedule")`` this is AdamWR, with ``sgdw`` SGDWR.

>>> restarts = warm_restarts(0.1, first_period=10, multiplier=2)
>>> [round(float(restarts.learning_rate(t)), 3) for t in (0, 5, 9, 10, 20)]
[0.1, 0.05, 0.002, 0.1, 0.05]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.schedules.ramps import positive_steps

CONVENTIONS = ("paper", "authors", "fastai07")
_LAST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class WarmRestarts:
    """Schedules of a run with restarts, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      multiplier: schedule of eta_t, the learning rate over its base.
      weight_decay: schedule of the normalised decay of the current period, or None.
      base_learning_rate: the value at a restart.
    """

    learning_rate: Callable[[Any], jax.Array]
    multiplier: Callable[[Any], jax.Array]
    weight_decay: Callable[[Any], jax.Array] | None
    base_learning_rate: float


def warm_restarts(
    learning_rate: float,
    first_period: float,
    multiplier: int = 2,
    *,
    min_learning_rate: float = 0.0,
    steps_per_epoch: int | None = None,
    normalized_decay: float | None = None,
    convention: str = "paper",
    total_steps: int | None = None,
) -> WarmRestarts:
    """Learning rate, and decay, of a run with warm restarts.

    Args:
      learning_rate: value at a restart, > 0.
      first_period: length of the first period, in steps, or in epochs with ``steps_per_epoch``.
      multiplier: factor of the length from each period to the next, a whole number >= 1; 2 (paper).
      min_learning_rate: where a period ends, in [0, learning_rate].
      steps_per_epoch: updates in an epoch, where ``first_period`` counts epochs.
      normalized_decay: lambda_norm, dimensionless (paper: 0.025 to 0.05); None for no decay. Use it
        with ``decay="schedule"``, which is the paper's, and in which eta_t multiplies it too.
      convention: ``"paper"``: T_cur counts the steps since the restart, in integers, as PyTorch's
        ``CosineAnnealingWarmRestarts``. ``"authors"``: their code, which advances before the first
        step, accumulates in floating point and restarts at an epoch's begin, so that a period can
        come out one step longer. ``"fastai07"``: the first twentieth of the first period at a hundredth of the rate.
      total_steps: length of the run, which ``"authors"`` and ``"fastai07"`` need for their table;
        later steps repeat its last entry.

    Raises:
      ValueError: a value is out of range or missing.
    """
    if not learning_rate > 0 or not 0 <= min_learning_rate <= learning_rate:
        raise ValueError(
            "learning_rate must be > 0 and min_learning_rate in [0, learning_rate], got "
            f"{learning_rate!r} and {min_learning_rate!r}."
        )
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {CONVENTIONS}, got {convention!r}.")
    if normalized_decay is not None and not normalized_decay >= 0:
        raise ValueError(f"normalized_decay must be a number >= 0, got {normalized_decay!r}.")
    factor = positive_steps("multiplier", multiplier)
    epoch = 1 if steps_per_epoch is None else positive_steps("steps_per_epoch", steps_per_epoch)
    period = first_period * epoch
    floor = min_learning_rate / learning_rate
    if convention == "paper":
        first = positive_steps("first_period, in steps,", round(period, 9))
        eta, length = _in_integers(first, factor, floor)
    else:
        if total_steps is None:
            raise ValueError(f"convention={convention!r} needs total_steps, for its table.")
        steps = positive_steps("total_steps", total_steps)
        table = _authors if convention == "authors" else _fastai07
        eta, length = _tabulated(*table(first_period, epoch, factor, steps), floor)

    def rate(count: Any) -> jax.Array:
        return learning_rate * eta(count)

    def decay(count: Any) -> jax.Array:
        assert normalized_decay is not None
        return normalized_decay / jnp.sqrt(length(count))

    return WarmRestarts(
        rate, eta, None if normalized_decay is None else decay, float(learning_rate)
    )


def _annealed(position: jax.Array, floor: float) -> jax.Array:
    return floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(math.pi * position))


def _in_integers(first: int, factor: int, floor: float) -> Any:
    """eta and period length as functions of the count, without rounding of T_cur."""
    dtype = jax.dtypes.canonicalize_dtype

    def split(count: Any) -> tuple[jax.Array, jax.Array]:
        steps = jnp.asarray(count, jnp.int32)
        if factor == 1:
            return steps % first, jnp.full_like(steps, first)
        begins, lengths, begin, length = [], [], 0, first
        while begin < _LAST:
            begins.append(begin)
            lengths.append(min(length, _LAST))
            begin, length = begin + length, length * factor
        index = jnp.sum(steps >= jnp.asarray(begins, jnp.int32), dtype=jnp.int32) - 1
        return steps - jnp.asarray(begins, jnp.int32)[index], jnp.asarray(lengths, jnp.int32)[index]

    def eta(count: Any) -> jax.Array:
        since, length = split(count)
        return _annealed(since.astype(dtype(float)) / length.astype(dtype(float)), floor)

    def length(count: Any) -> jax.Array:
        return split(count)[1].astype(dtype(float))

    return eta, length


def _tabulated(position: np.ndarray, length: np.ndarray, flat: np.ndarray, floor: float) -> Any:
    """eta and period length from host tables; ``flat`` replaces eta where it is not NaN."""
    table = floor + (1.0 - floor) * 0.5 * (1.0 + np.cos(np.pi * position))
    table = np.where(np.isnan(flat), table, flat)

    def lookup(values: np.ndarray, count: Any) -> jax.Array:
        index = jnp.clip(jnp.asarray(count, jnp.int32), 0, len(values) - 1)
        return jnp.asarray(values, jax.dtypes.canonicalize_dtype(float))[index]

    return (lambda count: lookup(table, count)), (lambda count: lookup(length, count))


def _authors(period: float, epoch: int, factor: int, steps: int) -> Any:
    """Positions of the authors' loop, which advances before use and restarts in whole epochs only.

    The share of the period that is done accumulates in floating point and stops at 1; a restart
    waits for it and for the epoch in which one is due.
    """
    position, length, done, due = np.zeros(steps), np.zeros(steps), 0.0, 1 + period
    for step in range(steps):
        done = min(done + 1 / (period * epoch), 1.0)
        if done >= 1 and step // epoch + 1 == due:
            done, period = 0.0, period * factor
            due += period
        position[step], length[step] = done, period * epoch
    return position, length, np.full(steps, np.nan)


def _fastai07(period: float, epoch: int, factor: int, steps: int) -> Any:
    """Positions of fastai 0.7's ``CosAnneal``: a short, flat start, then cosines."""
    length = round(period * epoch)
    positions, lengths, flat, inside = [], [], [], 0
    for step in range(steps):
        start = step < length / 20
        positions.append(inside / length)
        lengths.append(length)
        flat.append(0.01 if start else np.nan)
        inside += 1
        if inside == length and not start:
            inside, length = 0, length * factor
    return np.asarray(positions), np.asarray(lengths, float), np.asarray(flat)
