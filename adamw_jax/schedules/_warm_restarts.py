"""Make cosine schedules with warm restarts, and the normalised decay for them.

    eta_t = eta_min + (1 - eta_min) (1 + cos(pi T_cur / T_i)) / 2,   lr_t = lr eta_t
    lambda_i = lambda_norm / sqrt(updates in period i)

T_i is the length of period i in steps, T_cur the number of steps since its start. Loshchilov &
Hutter, SGDR (1608.03983) and Decoupled Weight Decay Regularization (1711.05101, appendix B).
``adamw(restarts, decay="schedule")`` is AdamWR; with ``sgdw`` it is SGDWR.

>>> restarts = warm_restarts(0.1, first_period=10, multiplier=2)
>>> [round(float(restarts.learning_rate(t)), 3) for t in (0, 5, 9, 10, 20)]
[0.1, 0.05, 0.002, 0.1, 0.05]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax._core import numerics
from adamw_jax._core.checks import LAST_COUNT, number, one_of, positive_steps
from adamw_jax.schedules._ramps import cosine
from adamw_jax.schedules._view import Viewed

Schedule = Callable[[Any], jax.Array]
CONVENTIONS = ("paper", "authors", "fastai07")


@dataclasses.dataclass(frozen=True)
class WarmRestarts(Viewed):
    """Schedules of a run with restarts, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      multiplier: schedule of eta_t, the learning rate divided by its base.
      weight_decay: schedule of the normalised decay of the current period, or None.
      base_learning_rate: the value at a restart.

    Example:
      >>> import adamw_jax as aj
      >>> schedule = aj.schedules.warm_restarts(1e-3, 100)
      >>> [round(float(schedule.learning_rate(count)), 6) for count in (0, 50, 100)]
      [0.001, 0.0005, 0.001]
    """

    learning_rate: Schedule
    multiplier: Schedule
    weight_decay: Schedule | None
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
    """Make schedules of learning rate and decay for a run with warm restarts.

    Args:
      learning_rate: value at a restart, > 0.
      first_period: length of the first period, in steps, or in epochs with ``steps_per_epoch``.
      multiplier: factor of the length from each period to the next, a whole number >= 1; 2 (paper).
      min_learning_rate: value at the end of a period, in [0, learning_rate).
      steps_per_epoch: updates in an epoch, if ``first_period`` counts epochs.
      normalized_decay: lambda_norm, dimensionless (paper: 0.025 to 0.05); None for no decay. Use it
        with ``decay="schedule"``, as the paper does; then eta_t also multiplies it.
      convention: how the steps of a period are counted:

        * ``"paper"``: T_cur counts the steps since the restart in integers, as in PyTorch's
          ``CosineAnnealingWarmRestarts``; correct for every count that an int32 can hold.
        * ``"authors"``: their code. It advances before the first step, accumulates in floating
          point and restarts only at the beginning of an epoch, so a period may be one step longer.
          ``first_period`` must be whole.
        * ``"fastai07"``: fastai 0.7's ``cycle_len``: as the paper, but the first twentieth of the
          first period uses a hundredth of the rate.
      total_steps: length of the run, needed by ``"authors"`` and ``"fastai07"``. They use a table
        of that many entries, made on the host in float64; later steps repeat the last entry.

    Returns:
      Schedules of the count of updates, from 0: learning rate, multiplier, and decay, if any.

    Example:
      >>> import adamw_jax as aj
      >>> restarts = aj.warm_restarts(0.1, first_period=100)
      >>> tx = aj.adamw(restarts)
    """
    top = number("learning_rate", learning_rate, above=0)
    floor = number("min_learning_rate", min_learning_rate, least=0, below=top) / top
    one_of("convention", convention, CONVENTIONS)
    norm = (
        0.0 if normalized_decay is None else number("normalized_decay", normalized_decay, least=0)
    )
    factor = positive_steps("multiplier", multiplier)
    epoch = 1 if steps_per_epoch is None else positive_steps("steps_per_epoch", steps_per_epoch)
    period = number("first_period", first_period, above=0)
    unit = "first_period" if steps_per_epoch is None else "first_period * steps_per_epoch"
    first = positive_steps(unit, round(period * epoch, 9))
    if convention == "paper":
        eta, length = _in_integers(first, factor, floor)
    else:
        if total_steps is None:
            raise ValueError(
                f"convention={convention!r} needs total_steps, the length of the run, got None."
            )
        steps = positive_steps("total_steps", total_steps)
        if convention == "authors":
            periods = positive_steps("first_period", first_period)
            eta, length = _tabulated(_authors(periods, epoch, factor, steps), floor)
        else:
            if first < 2:
                raise ValueError(f"convention='fastai07' needs {unit} >= 2, got {first}.")
            eta, length = _tabulated(_fastai07(first, factor, steps), floor)
    return WarmRestarts(
        learning_rate=lambda count: top * eta(count),
        multiplier=eta,
        weight_decay=(
            None if normalized_decay is None else lambda count: norm / jnp.sqrt(length(count))
        ),
        base_learning_rate=top,
    )


def _in_integers(first: int, factor: int, floor: float) -> tuple[Schedule, Schedule]:
    """Return the multiplier and the length of the period as functions of the count."""
    begins, lengths = [0], [first]
    while factor > 1 and begins[-1] + lengths[-1] <= LAST_COUNT:
        begins.append(begins[-1] + lengths[-1])
        lengths.append(lengths[-1] * factor)

    def split(count: Any) -> tuple[jax.Array, jax.Array]:
        steps = jnp.asarray(count, jnp.int32)
        if factor == 1:
            return steps % jnp.int32(first), jnp.full_like(steps, first)
        # The last period may be too long for an int32; no count reaches its end.
        ends = jnp.asarray(np.minimum(lengths, LAST_COUNT), jnp.int32)
        table = jnp.asarray(begins, jnp.int32)
        index = jnp.searchsorted(table, steps, side="right") - 1
        return steps - table[index], ends[index]

    def eta(count: Any) -> jax.Array:
        since, length = split(count)
        whole = length.astype(numerics.default_float())
        done, left = (
            since.astype(numerics.default_float()) / whole,
            (length - since).astype(numerics.default_float()) / whole,
        )
        return cosine(1.0, floor, done, left)

    return eta, lambda count: split(count)[1].astype(numerics.default_float())


def _tabulated(tables: tuple[np.ndarray, np.ndarray], floor: float) -> tuple[Schedule, Schedule]:
    """Return the same as ``_in_integers``, from host tables; their ``eta`` has no floor."""
    eta, length = tables
    table = floor + (1.0 - floor) * eta

    def lookup(values: np.ndarray, count: Any) -> jax.Array:
        index = jnp.clip(jnp.asarray(count, jnp.int32), 0, len(values) - 1)
        return jnp.asarray(values, numerics.default_float())[index]

    return (lambda count: lookup(table, count)), (lambda count: lookup(length, count))


def _authors(period: int, epoch: int, factor: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run the authors' loop, which advances before use and restarts only in whole epochs.

    The position in the period accumulates in floating point, up to 1. A restart happens if it is 1
    and the epoch is the one in which the period ends.
    """
    eta, length, done, due = np.zeros(steps), np.zeros(steps), 0.0, 1 + period
    for step in range(steps):
        done = min(done + 1 / (period * epoch), 1.0)
        if done >= 1 and step // epoch + 1 == due:
            done, period = 0.0, period * factor
            due += period
        eta[step], length[step] = 0.5 * (1.0 + np.cos(np.pi * done)), period * epoch
    return eta, length


def _fastai07(length: int, factor: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Run the loop of fastai 0.7, with a short, flat start, then cosines."""
    eta, lengths, inside = np.zeros(steps), np.zeros(steps), 0
    for step in range(steps):
        flat = step < length / 20
        eta[step] = 0.01 if flat else 0.5 * (1.0 + np.cos(np.pi * inside / length))
        lengths[step] = length
        inside += 1
        if inside == length and not flat:
            inside, length = 0, length * factor
    return eta, lengths
